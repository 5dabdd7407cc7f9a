"""The services of a sweep: the home folder, the store, the tracker, and embedded servers."""
