"""Results: from rows to tables, figures and a page. Nothing here trains."""
