"""Small encoders, data, worlds and trial functions that tests make themselves."""
