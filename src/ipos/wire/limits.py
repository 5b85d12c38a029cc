"""Every limit of every protocol, in one place. Names carry the unit; each has a test that reaches it."""

from __future__ import annotations

KiB = 1 << 10
MiB = 1 << 20
GiB = 1 << 30

# the node
log_least_bytes = 64 * KiB  # of a log file; ipos.toml says when the next is begun
log_line_bytes = 16 * KiB  # of one event; what is longer is cut
lag_bad_s = 0.05  # a loop that does not look for work for so long is written down, with what it did

# records
record_bytes = 1 * MiB
record_depth = 32
typed_items = 100_000  # in one array of a struct that is signed by EIP-712

# keys
keystore_bytes = 64 * KiB
passphrase_bytes = 1 * KiB
scrypt_bytes = 512 * MiB  # of memory that a keystore may ask for; geth's files ask for 256 MiB
scrypt_steps = 1 << 23  # n·r·p; geth's files need 2**21, about a second
pbkdf2_rounds = 10_000_000
unlock_s = 600.0
unlock_most_s = 7 * 86_400.0
wrong_passphrase_most_s = 60.0  # the longest pause after wrong passphrases; it begins with one second and doubles

# 9P
msize_bytes = 1 * MiB + 24
msize_least_bytes = 256
fids_per_session = 4096
directory_entries = 1 << 20  # that a client takes of one directory
line_bytes = 16 * MiB  # of one line that a client reads
file_offset = (1 << 63) - 1
requests_in_flight = 256
requests_waiting = 1024  # behind those in flight; then the server reads no more
write_buffer_bytes = 1 * MiB  # answers that a client has not taken; then it is not read from
bytes_in_flight = 8 * MiB  # of one session: what requests carry and what their answers may
walk_names = 16
name_bytes = 255
symlink_bytes = 4095
xattr_bytes = 64 * KiB
handshake_s = 10.0  # of a WebSocket, until 9P may begin
locks_per_file = 1024
ctl_line_bytes = 64 * KiB
job_spec_bytes = 16 * MiB
stdin_bytes = 16 * 1024 * MiB  # written to the open standard input of one task

# namespaces
mount_points = 512  # of one namespace
union_members = 64
namespace_lines = 4096
namespace_bytes = 256 * KiB
path_names = 256  # in a path of a namespace
posted_servers = 256  # in /srv
posted_connect_s = 5.0  # a posted server answers the first time within this time,
posted_answer_s = 10.0  # and afterwards every request but reads and writes, which may wait
posted_entries = 100_000  # of one directory of it

# blocks
block_bytes = 2 * MiB
inline_bytes = 32 * KiB  # a block up to this size travels inside the message that names it

# joining
join_message_bytes = 128 * KiB  # a list of 256 machines has some 50 KiB
introduced_machines = 32  # whose addresses an introduction has
introduced_addresses = 8  # of each
friends = 256
granted_cores = 1024
guest_leases_per_slot = 4  # what a friend may have waiting here, for each slot that he was granted
join_timeout_s = 60.0
invite_s = 600.0
nearby_s = 3.0  # how long a spoken code waits for mDNS to find who knows it
invites_open = 32  # at once; more are refused
join_failures = 5  # of one peer within `join_failures_s`; then it is not listened to until they are over
join_failures_s = 60.0
contacts_at_once = 32  # conversations of /ipos/list/1 that others began
machines_per_account = 256
machine_name_bytes = 32

# leases
grace_s = 15.0  # silence after which the coordinator gives a lease to another node
beat_s = 2.0  # how often both ends of a lease speak when they have nothing to say
beats_per_grace = 4  # and at least so often in its grace, so that one late beat is no silence
grace_min_s = 1.0
leases_per_node = 4096

# jobs
tasks_per_job = 100_000
jobs_kept = 1000  # the newest jobs: they are listed, and what they read and came to stays in the store
args_bytes = 128 * KiB
faults_per_task = 3  # a task that so many nodes could not even run is given up

# native tasks
output_bytes = 256 * MiB  # default limit of what one task may print, and of each file it writes
stderr_tail_bytes = 4 * KiB

# the network process
dial_s = 20.0
outage_s = 10.0  # how long what needs the network waits for a restart of the network process
events_waiting = 4096
link_frame_bytes = 4 * MiB
topic_message_bytes = 64 * KiB
route_value_bytes = 4 * KiB
fetch_cids = 16_384  # CIDs in one request to the network process; a longer list is cut into several

# receipts
marks_bytes = 512 * MiB  # of the file of a task's marks: five million
segments = 4096  # receipts in a chain: how often a task may have moved

# the engine
engine_memory_bytes = 256 * MiB  # of a program that asks for nothing else
engine_memory_most_bytes = 4 * GiB
mark_every = 1_000_000_000  # units of work between marks
mark_every_least = 1_000_000
save_every_s = 5.0
save_every_least_s = 0.1
car_bytes = 16 * GiB  # of an unfinished task with all that it needs
image_bytes = 26_267_204  # of the CPython image
