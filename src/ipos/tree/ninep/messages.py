"""The messages of 9P, in one table: number, name, fields. From each row an encoder and a decoder are made (`codec`).

Sources: intro(5) of the Plan 9 manual for 9P2000, http://ericvh.github.io/9p-rfc/rfc9p2000.u.html for 9P2000.u, https://github.com/chaos/diod/blob/master/protocol.md for 9P2000.L. `9P2000.L.ipos` is .L
whose error reply also carries the sentence. Types: 1 2 4 8 = little-endian unsigned integers of so many bytes, s = string (u16 length), d = data
(u32 length), b = a block with a u16 length, q = qid, s* and q* = lists with a u16 count.
"""

from __future__ import annotations

BASE = """
100 Tversion msize:4 version:s
101 Rversion msize:4 version:s
102 Tauth afid:4 uname:s aname:s
103 Rauth aqid:q
104 Tattach fid:4 afid:4 uname:s aname:s
105 Rattach qid:q
107 Rerror ename:s
108 Tflush oldtag:2
109 Rflush
110 Twalk fid:4 newfid:4 wname:s*
111 Rwalk wqid:q*
112 Topen fid:4 mode:1
113 Ropen qid:q iounit:4
114 Tcreate fid:4 name:s perm:4 mode:1
115 Rcreate qid:q iounit:4
116 Tread fid:4 offset:8 count:4
117 Rread data:d
118 Twrite fid:4 offset:8 data:d
119 Rwrite count:4
120 Tclunk fid:4
121 Rclunk
122 Tremove fid:4
123 Rremove
124 Tstat fid:4
125 Rstat stat:b
126 Twstat fid:4 stat:b
127 Rwstat
"""

L = """
102 Tauth afid:4 uname:s aname:s n_uname:4
104 Tattach fid:4 afid:4 uname:s aname:s n_uname:4
7 Rlerror ecode:4
8 Tstatfs fid:4
9 Rstatfs type:4 bsize:4 blocks:8 bfree:8 bavail:8 files:8 ffree:8 fsid:8 namelen:4
12 Tlopen fid:4 flags:4
13 Rlopen qid:q iounit:4
14 Tlcreate fid:4 name:s flags:4 mode:4 gid:4
15 Rlcreate qid:q iounit:4
16 Tsymlink fid:4 name:s symtgt:s gid:4
17 Rsymlink qid:q
18 Tmknod dfid:4 name:s mode:4 major:4 minor:4 gid:4
19 Rmknod qid:q
20 Trename fid:4 dfid:4 name:s
21 Rrename
22 Treadlink fid:4
23 Rreadlink target:s
24 Tgetattr fid:4 mask:8
25 Rgetattr valid:8 qid:q mode:4 uid:4 gid:4 nlink:8 rdev:8 length:8 blksize:8 blocks:8 atime:8 atime_ns:8 mtime:8 mtime_ns:8 ctime:8 ctime_ns:8 btime:8 btime_ns:8 gen:8 data_version:8
26 Tsetattr fid:4 valid:4 mode:4 uid:4 gid:4 length:8 atime:8 atime_ns:8 mtime:8 mtime_ns:8
27 Rsetattr
30 Txattrwalk fid:4 newfid:4 name:s
31 Rxattrwalk length:8
32 Txattrcreate fid:4 name:s attr_size:8 flags:4
33 Rxattrcreate
40 Treaddir fid:4 offset:8 count:4
41 Rreaddir data:d
50 Tfsync fid:4 datasync:4
51 Rfsync
52 Tlock fid:4 type:1 lockflags:4 start:8 length:8 proc_id:4 client_id:s
53 Rlock status:1
54 Tgetlock fid:4 type:1 start:8 length:8 proc_id:4 client_id:s
55 Rgetlock type:1 start:8 length:8 proc_id:4 client_id:s
70 Tlink dfid:4 fid:4 name:s
71 Rlink
72 Tmkdir dfid:4 name:s mode:4 gid:4
73 Rmkdir qid:q
74 Trenameat olddirfid:4 oldname:s newdirfid:4 newname:s
75 Rrenameat
76 Tunlinkat dirfd:4 name:s flags:4
77 Runlinkat
"""

U = """
102 Tauth afid:4 uname:s aname:s n_uname:4
104 Tattach fid:4 afid:4 uname:s aname:s n_uname:4
107 Rerror ename:s ecode:4
114 Tcreate fid:4 name:s perm:4 mode:1 extension:s
"""

IPOS = """
7 Rlerror ecode:4 ename:s
"""

DIALECTS: dict[str, tuple[str, ...]] = {
    "9P2000": (BASE,),
    "9P2000.u": (BASE, U),
    "9P2000.L": (BASE, L),
    "9P2000.L.ipos": (BASE, L, IPOS),
}

NOTAG = 0xFFFF
NOFID = 0xFFFFFFFF
