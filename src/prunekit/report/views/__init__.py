"""What each part of the page shows: recorded values turned into figures, rows and chart geometry."""

__all__: list[str] = []
