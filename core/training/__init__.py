"""Training machinery shared by every domain: the base task, optimiser, schedules, loader, callbacks."""
