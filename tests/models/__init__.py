"""Tests of layeredrl.models, written from the specification of the Models API."""
