"""Decodes one image file to 8-bit RGB, by the same rules for training and for prediction.

    decode.py       one file of any format, upright, resized and cropped to a square
    pixels.py       how pixels of more than 8 bits become 8 bits
    image_files.py  images that stay in their files because they would not fit in memory

`harness.data.sources.folder` and `harness.export.predict` call it.
"""
