"""An RTSP server on loopback, for tests: PORT (0 for any), a pipeline, SCHEME, USER, PASSWORD.

For the system's Python: Debian's python3-gi and gir1.2-gst-rtsp-server-1.0. Prints its port.
"""

import sys

import gi

for name in ("Gst", "GstRtsp", "GstRtspServer"):
    gi.require_version(name, "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402 -- the version first

Gst.init(None)
port, pipeline, *login = sys.argv[1:]
server = GstRtspServer.RTSPServer(address="127.0.0.1", service=port)
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(f"( {pipeline} )")
if login:
    scheme, user, password = login
    role, token, roles = "viewer", GstRtspServer.RTSPToken(), GstRtspServer.RTSPPermissions()
    token.set_string("media.factory.role", role)
    for right in ("access", "construct"):
        roles.add_permission_for_role(role, f"media.factory.{right}", True)
    factory.set_permissions(roles)
    auth = GstRtspServer.RTSPAuth()
    if scheme == "Digest":
        auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
        auth.add_digest(user, password, token)
    else:
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
    server.set_auth(auth)
server.get_mount_points().add_factory("/camera", factory)
server.attach(None)
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
