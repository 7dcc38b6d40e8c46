"""The fast form of the detector, and the stream of images through either form."""
