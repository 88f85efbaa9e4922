"""What a person sees of a sweep: its plan, its progress, its status."""
