"""Ray, and what makes a run resumable: the only package that imports `ray`."""
