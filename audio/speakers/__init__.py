"""Who speaks when: enrolled speakers, followed through a recording."""
