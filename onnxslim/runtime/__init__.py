"""Running graphs: sessions, what the installation can do, statistics, and comparing numbers."""
