"""Decodes one image file to 8-bit RGB, by the same rules for training and for prediction.

    decode.py       one file of any format, upright, resized and cropped to a square
    pixels.py       pixels of more than 8 bits a channel to 8 bits
    image_files.py  images that are decoded in every epoch, because decoded they would not fit in memory

`harness.data.sources.folder` and `harness.export.predict` call `decode_image`.
"""
