"""Images and tokens, from a folder to a training step.

``image_sources`` gives batches of the pixels of what ``listing`` found, from memory or decoded on
demand, with the help of ``unreadable_images`` and ``crops``; ``digits`` needs no files, and
``augmentation`` changes what a discriminator sees. ``token_sources`` encodes batches of images into
tokens, and ``token_cache`` keeps these on disk (``python -m var_train.tokenize``), in
``token_shards`` that its ``cache_index`` describes. ``batches`` says which images a step takes,
from any source, and ``loader`` has those of the next steps read while the device works on this one.
``resume_check`` compares the images of a run with those that its checkpoints were trained on.
"""
