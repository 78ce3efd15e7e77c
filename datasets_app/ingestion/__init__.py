"""Turns an uploaded file into a Parquet table of text cells: survey the bytes, read records strictly, write groups."""
