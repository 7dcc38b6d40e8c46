"""A camera that speaks RTSP: no frame is lost, however late it is asked for."""

import re
import socket
import socketserver
import struct
import threading
import time

import av
import pytest
from numbered_clip import number_of, write_clip

import frcnn


class Camera(socketserver.StreamRequestHandler):
    """Sends the units of the server's H.264 stream, each as one RTP packet; refuses UDP."""

    def handle(self):
        while line := self.rfile.readline():
            method, headers = line.split()[0].decode(), {}
            while (header := self.rfile.readline().decode().strip()) != "":
                name, value = header.split(": ", 1)
                headers[name.lower()] = value
            self.answer(method, headers)

    def answer(self, method, headers):
        status, extra, body = "200 OK", "Session: 1\r\n", ""
        if method == "OPTIONS":
            extra = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
        elif method == "DESCRIBE":
            body = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=clip\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
            body += "a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\n"
            extra = f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
        elif method == "SETUP":
            self.server.asked.append(headers["transport"])
            if "TCP" not in headers["transport"]:
                status = "461 Unsupported Transport"
            extra += "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
        self.wfile.write(f"RTSP/1.0 {status}\r\nCSeq: {headers['cseq']}\r\n{extra}\r\n{body}".encode())
        if method == "PLAY":
            for number, (ends_frame, ticks, unit) in enumerate(self.server.units):
                rtp = struct.pack(">BBHII", 0x80, 96 | ends_frame << 7, number, ticks, 1) + unit
                self.wfile.write(b"$\0" + struct.pack(">H", len(rtp)) + rtp)
            self.request.shutdown(socket.SHUT_RDWR)  # the camera is switched off


def units_of(clip):
    """(whether it is a frame's last, time in 1/90000 s, content) of each unit of H.264."""
    with av.open(str(clip)) as container:
        for packet in container.demux(video=0):
            units = [unit for unit in re.split(b"\0\0\0?\1", bytes(packet)) if unit]
            for number, unit in enumerate(units, 1):
                yield number == len(units), packet.pts, unit


@pytest.fixture
def camera(tmp_path):
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Camera) as server:
        server.daemon_threads = True
        server.asked = []
        server.units = list(units_of(write_clip(tmp_path / "clip.ts", frames=40)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server, f"rtsp://127.0.0.1:{server.server_address[1]}/live"
        server.shutdown()


def test_every_frame_of_a_camera_arrives(camera):
    """By UDP, what comes while the model computes is lost when the system's buffer is full."""
    server, address = camera
    numbers = []
    for frame in frcnn.video(address):
        numbers.append(number_of(frame))
        time.sleep(0.01)
    assert numbers[:38] == list(range(38))  # the last packets may go under as the connection ends
    assert re.match("RTP/AVP/TCP", server.asked[0]), server.asked
