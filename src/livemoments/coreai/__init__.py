"""Core AI packages at run time, by Apple's own runtime; the extra ``coreai``, beta as that library is."""
