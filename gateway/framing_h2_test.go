package gateway_test

import (
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-sessions/holdfast/gateway"
)

// frame returns a frame of HTTP/2 on stream 1, or 0 for a kind that is of the connection.
func frame(kind, flags byte, payload string) string {
	stream := "\x00\x00\x00\x01"
	if kind == 4 { // SETTINGS
		stream = "\x00\x00\x00\x00"
	}
	n := len(payload)
	return string([]byte{byte(n >> 16), byte(n >> 8), byte(n), kind, flags}) + stream + payload
}

// hpack encodes name, value, name, value as literals without indexing, so that nothing is checked on the way.
func hpack(fields ...string) string {
	var b strings.Builder
	for i, s := range fields {
		if i%2 == 0 {
			b.WriteByte(0)
		}
		if len(s) > 126 {
			panic("longer than this test can encode")
		}
		b.WriteByte(byte(len(s)))
		b.WriteString(s)
	}
	return b.String()
}

// exchange2 sends frames on a connection of its own and returns what comes of stream 1: a status, "reset" or "end" of the
// connection.
func (r *running) exchange2(frames string) string {
	r.t.Helper()
	_, roots := testCert()
	c, err := tls.Dial("tcp", strings.TrimPrefix(r.url, "https://"), &tls.Config{RootCAs: roots, ServerName: "example.com", NextProtos: []string{"h2"}})
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprint(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", frame(4, 0, ""), frames)
	head := make([]byte, 9)
	for {
		if _, err := io.ReadFull(c, head); err != nil {
			if e, ok := err.(net.Error); ok && e.Timeout() {
				return "nothing"
			}
			return "end"
		}
		payload := make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
		if _, err := io.ReadFull(c, payload); err != nil {
			return "end"
		}
		switch stream := binary.BigEndian.Uint32(head[5:]); {
		case head[3] == 7: // GOAWAY
			return "end"
		case stream == 1 && head[3] == 3:
			return "reset"
		case stream == 1 && head[3] == 1:
			// The status comes first, as an index of the static table or with its text.
			if s, ok := map[byte]string{0x88: "200", 0x8c: "400"}[payload[0]]; ok {
				return s
			}
			return string(payload[2:5])
		}
	}
}

// Attack 34 over HTTP/2: what would be another request, or another reading of it, over the HTTP/1.1 of the upstream.
func TestFramingHTTP2(t *testing.T) {
	pseudo := []string{":method", "POST", ":scheme", "https", ":authority", "x", ":path", "/a"}
	with := func(fields ...string) string { return hpack(append(pseudo[:8:8], fields...)...) }
	const headers, data, end, all = 1, 0, 1, 5 // kinds and flags: END_STREAM, and that with END_HEADERS
	plain := []message{{"POST", "/a", "x", ""}}
	hello := []message{{"POST", "/a", "x", "hello"}}
	for _, c := range []struct {
		name, frames string
		want         []message // at the upstream; nil: refused
	}{
		{"plain", frame(headers, all, with()), plain},
		{"CR LF in a value", frame(headers, all, with("a", "b\r\nx-session-id: forged")), nil},
		{"LF in a value", frame(headers, all, with("a", "b\nx-session-id: forged")), nil},
		{"NUL in a value", frame(headers, all, with("a", "b\x00c")), nil},
		{"CR LF in a name", frame(headers, all, with("a: b\r\nx-session-id", "forged")), nil},
		{"colon in a name", frame(headers, all, with("x-session-id:", "forged")), nil},
		{"space in a name", frame(headers, all, with("content-length ", "5")), nil},
		{"capitals in a name", frame(headers, all, with("Content-Length", "0")), nil},
		{"empty name", frame(headers, all, with("", "b")), nil},
		{"request line in the path", frame(headers, all, hpack(":method", "GET", ":scheme", "https", ":authority", "x", ":path", "/ HTTP/1.1\r\nHost: y\r\n\r\nGET /smuggled")), nil},
		{"request line in the method", frame(headers, all, hpack(":method", "GET / HTTP/1.1\r\nHost: y\r\n\r\nGET", ":scheme", "https", ":authority", "x", ":path", "/")), nil},
		{"CR LF in the authority", frame(headers, all, hpack(":method", "GET", ":scheme", "https", ":authority", "x\r\nX-Session-Id: forged", ":path", "/")), nil},
		{"path without slash", frame(headers, all, hpack(":method", "GET", ":scheme", "https", ":authority", "x", ":path", "a")), nil},
		{"no path", frame(headers, all, hpack(":method", "GET", ":scheme", "https", ":authority", "x")), nil},
		{"two paths", frame(headers, all, with(":path", "/b")), nil},
		{"two methods", frame(headers, all, with(":method", "GET")), nil},
		{"two authorities", frame(headers, all, with(":authority", "y")), nil},
		{"pseudo-header behind others", frame(headers, all, hpack(":method", "GET", "a", "b", ":scheme", "https", ":authority", "x", ":path", "/")), nil},
		{"unknown pseudo-header", frame(headers, all, with(":host", "y")), nil},
		{"status", frame(headers, all, with(":status", "200")), nil},
		{"connection", frame(headers, all, with("connection", "close")), nil},
		{"keep-alive", frame(headers, all, with("keep-alive", "timeout=5")), nil},
		{"upgrade", frame(headers, all, with("upgrade", "h2c")), nil},
		{"transfer-encoding", frame(headers, all, with("transfer-encoding", "chunked")), nil},
		{"te", frame(headers, all, with("te", "chunked")), nil},
		{"other host", frame(headers, all, with("host", "y")), nil},
		{"same host", frame(headers, all, with("host", "x")), plain},
		{"length", frame(headers, 4, with("content-length", "5")) + frame(data, end, "hello"), hello},
		{"no length", frame(headers, 4, with()) + frame(data, end, "hello"), hello},
		{"length too small", frame(headers, 4, with("content-length", "4")) + frame(data, end, "hello"), nil},
		{"length too large", frame(headers, 4, with("content-length", "6")) + frame(data, end, "hello"), nil},
		{"length without data", frame(headers, all, with("content-length", "5")), nil},
		{"two lengths", frame(headers, 4, with("content-length", "5", "content-length", "6")) + frame(data, end, "hello"), nil},
		{"list of lengths", frame(headers, 4, with("content-length", "5, 5")) + frame(data, end, "hello"), nil},
		{"length with sign", frame(headers, 4, with("content-length", "+5")) + frame(data, end, "hello"), nil},
		{"length with underscore", frame(headers, all, with("content_length", "5")), nil},
		{"pseudo-header in the trailer", frame(headers, 4, with("trailer", "a")) + frame(data, 0, "hello") + frame(headers, all, hpack(":path", "/b")), nil},
		{"length in the trailer", frame(headers, 4, with()) + frame(data, 0, "hello") + frame(headers, all, hpack("content-length", "9")), hello}, // dropped
	} {
		t.Run(c.name, func(t *testing.T) {
			up := mustRecorder(t)
			g := mustRun(t, "h2", gateway.Config{Upstreams: upstreams(up.url)})
			got := g.exchange2(c.frames)
			seen := up.take(t)
			if c.want != nil && got != "200" || c.want == nil && got != "400" && got != "reset" && got != "end" {
				t.Errorf("answer: %s", got)
			}
			if d := cmp.Diff(c.want, seen); d != "" {
				t.Errorf("at the upstream (-want +got), after %s:\n%s", got, d)
			}
			if u := g.upstream("a"); !u.Up || u.Failures > 0 {
				t.Errorf("the client's fault counts against the upstream: %+v", u)
			}
		})
	}
}
