"""Measurements of labeling: jobs against known endpoints, the store, curation."""
