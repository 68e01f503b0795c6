// In the place of MindSpore's header for CANN's own operators, which needs all of CANN.
