"""Which images there are, and where their contents lie: lists of files, none of them decoded.

``image_files`` is such a list, with its names in a ``name_list``. ``folder_scan`` makes one of a
folder.
"""
