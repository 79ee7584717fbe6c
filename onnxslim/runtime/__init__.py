"""Running graphs: sessions, what the installation can do, and comparing numbers."""
