"""What a sweep leaves on disk, and how it is found, resumed and reused."""
