"""`manage.py doctor`: what may be wrong with a data directory and the machine, and what to do about each finding."""
