"""Live Photos as phones write them: Apple's pairs, Android's Motion Photos, and plain photos with a video.

Decoding needs the extra ``livephoto``: PyAV for the video, pillow-heif for HEIC.
"""
