"""What a person does around the two jobs: look, check, estimate, import, clean up."""
