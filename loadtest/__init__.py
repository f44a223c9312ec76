"""Drive one served model: load points, windows, rows."""
