"""What is learnt from, and what is reported on."""
