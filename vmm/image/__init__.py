"""What IMAGE can be: the host, a directory, a root-fs tar, an OCI layout or archive, a `docker save` archive, an ELF
file or a name in the store.

`resolve.py` tells which it is, `oci.py` reads manifests, `layout.py` and `streams.py` the files they are kept in,
`unpack.py` makes directories of layers, `store.py` keeps them. Everything that comes out of an archive is hostile.

Start-up counts: `resolve` imports the rest only for what has to be unpacked or looked up.
"""
