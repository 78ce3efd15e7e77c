"""Tests of the metrics, each against another implementation."""
