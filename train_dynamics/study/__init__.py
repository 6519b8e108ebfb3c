"""One pass over a recording: results, tables, groups, claims."""
