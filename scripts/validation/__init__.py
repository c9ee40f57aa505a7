"""Can the energy be trusted? Counts and prices beside what others found: the figures of docs/validation.md."""
