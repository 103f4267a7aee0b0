"""Are K thoughts different, and good?"""
