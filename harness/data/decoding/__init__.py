"""From one image file to 8-bit RGB, for training and for prediction alike.

    decode.py       one file of any format, upright, resized and cropped to a square
    pixels.py       how pixels of more than 8 bits become 8 bits
    image_files.py  images that stay in their files because they would not fit in memory

The folder source fills the decoded cache by these; a bundle predicts by them.
"""
