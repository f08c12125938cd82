"""The lab's own failures."""


class LabError(Exception):
    """The lab could not do its work; the text is one line that says what to do. Exit status 125."""
