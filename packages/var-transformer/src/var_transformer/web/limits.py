"""Every limit of the page, with its reason: batch, time, queue, uploads and requests."""

# ---------------------------------------------------------------- what a visitor may ask for
MAX_IMAGES = 64  # the largest --max-images: pictures at once, which share the models' memory
DEFAULT_IMAGES = 8
DEFAULT_SECONDS = 120.0  # of a generation, unless --max-seconds says otherwise

# ---------------------------------------------------------------- the queue
MAX_WAITING = 64  # jobs of all visitors: more would wait longer than anyone is willing to
MAX_JOBS_OF_SESSION = 4  # including the one that runs
MAX_JOBS_OF_ADDRESS = MAX_WAITING // 2  # a proxy may share one address among many visitors
LISTENER_SECONDS = 3.0  # from joining the queue to listening for results; then the job is dropped

# ---------------------------------------------------------------- uploads
MAX_UPLOAD = 20 * 2**20  # bytes of one upload: a large photograph
MAX_UPLOADS_OF_ADDRESS = 256 * 2**20  # bytes in the page's folder
MAX_UPLOADS = 2**30  # bytes of all visitors in the page's folder
MIN_FILE = 4096  # bytes that the smallest file takes on a disk
MAX_PIXELS = 2**23  # of an uploaded picture: 4K and a little more
MAX_LAYERS = 4  # of a drawing; the page's editor sends one
KEPT_SECONDS = 3600  # how long files and the pictures of a session are kept
MAX_SESSIONS = 100  # whose pictures are kept

# ---------------------------------------------------------------- requests
MAX_BODY = 64 * 1024  # bytes of a call; files are uploaded, not sent in calls
MAX_FORM = 64 * 1024  # bytes of an upload besides its file
MAX_DEPTH = 8  # of nested lists and objects
BODY_SECONDS = 60.0  # within which a body must have arrived
MAX_DRAINED = 64 * 2**20  # bytes read of a refused request, so that its sender sees the answer

# ---------------------------------------------------------------- the rest
MIN_PASSWORD = 8  # characters
GUESS_SECONDS = 1.0  # before a wrong password is answered: guessing takes time
ENDING_SECONDS = 5  # for running requests when the server ends
