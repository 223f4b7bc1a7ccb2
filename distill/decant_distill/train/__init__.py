"""Teaching a student: rows become token batches, batches a run that survives a kill, the run an artifact."""
