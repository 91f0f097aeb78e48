from conftest_images import make_config

__all__ = ["make_config"]
