"""Which images there are, and where their contents lie: lists of files, none of them decoded.

``image_files`` is such a list, with its names in a ``name_list``. ``find_images`` makes one of a
folder (``folder_scan``) or of tar files in place (``shard_scan``): ``tar_walk`` finds the members
of one, ``shard_index`` their labels, and ``shard_reader`` reads them later from ``open_files``.
``kept_lists`` keeps what took long for the next start, ``kept_folders`` the list of a folder.
``source_errors`` says which errors no other image makes good.
"""
