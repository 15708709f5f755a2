from .databases import provider, url

__all__ = ["provider", "url"]
