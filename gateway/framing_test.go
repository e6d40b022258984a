package gateway_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-sessions/holdfast/gateway"
)

// message is a request, as the strictest of readers sees it.
type message struct{ Method, Target, Host, Body string }

var (
	requestLine = regexp.MustCompile(`^([!#-'*+\-.^_\x60|~0-9A-Za-z]+) ([^ ]+) HTTP/1\.([01])$`)
	fieldLine   = regexp.MustCompile("^([!#-'*+\\-.^_\x60|~0-9A-Za-z]+):[ \t]*((?s:.*?))[ \t]*$")
	chunkLine   = regexp.MustCompile(`^([0-9A-Fa-f]{1,15})(;[^\x00-\x08\x0a-\x1f\x7f]{0,255})?$`)
)

// nextMessage takes one request off b by the letter of RFC 9112, without any of what a reader may tolerate. ok is false if
// b does not begin with one, whole. It is written to be read, not to be fast: what the guard and the upstream saw is
// compared with it.
func nextMessage(b []byte) (m message, rest []byte, ok bool) {
	line := func() string {
		l, r, found := bytes.Cut(b, []byte("\r\n"))
		if !found || bytes.ContainsAny(l, "\r\n\x00") {
			ok = false
			return "!"
		}
		b = r
		return string(l)
	}
	ok = true
	first := requestLine.FindStringSubmatch(line())
	if first == nil {
		return m, nil, false
	}
	m.Method, m.Target = first[1], first[2]
	var hosts, lengths, codings []string
	for l := line(); l != ""; l = line() {
		field := fieldLine.FindStringSubmatch(l)
		if !ok || field == nil {
			return m, nil, false
		}
		switch strings.ReplaceAll(strings.ToLower(field[1]), "_", "-") {
		case "host":
			hosts = append(hosts, field[2])
		case "content-length":
			lengths = append(lengths, field[2])
		case "transfer-encoding":
			codings = append(codings, field[2])
		}
	}
	switch {
	case len(hosts) > 1 || len(hosts) == 0 && first[3] == "1", len(lengths) > 1, len(codings) > 1,
		len(codings) > 0 && (len(lengths) > 0 || first[3] == "0" || !strings.EqualFold(codings[0], "chunked")):
		return m, nil, false
	}
	m.Host = strings.Join(hosts, "")
	if len(codings) == 0 {
		n := int64(0)
		if len(lengths) > 0 {
			var err error
			if n, err = strconv.ParseInt(lengths[0], 10, 64); err != nil || strings.Trim(lengths[0], "0123456789") != "" {
				return m, nil, false
			}
		}
		if n > int64(len(b)) {
			return m, nil, false
		}
		m.Body = string(b[:n])
		return m, b[n:], true
	}
	for {
		size := chunkLine.FindStringSubmatch(line())
		if size == nil {
			return m, nil, false
		}
		n, _ := strconv.ParseInt(size[1], 16, 64)
		if n == 0 {
			break
		}
		if n > int64(len(b)) {
			return m, nil, false
		}
		m.Body += string(b[:n])
		b = b[n:]
		if line() != "" {
			return m, nil, false
		}
	}
	for l := line(); l != ""; l = line() {
		if !ok || !fieldLine.MatchString(l) {
			return m, nil, false
		}
	}
	return m, b, true
}

// recorder is an upstream that keeps the bytes it gets, and answers each message it reads from them. It takes nothing
// that is not strictly well formed.
type recorder struct {
	url string

	// mu guards the fields below.
	mu       sync.Mutex
	messages []message
	bad      []string // what is no message, or not the end of one
	cut      int      // connections that ended within a message
}

func mustRecorder(t testing.TB) *recorder {
	l := mustListen(t)
	r := &recorder{url: "http://" + l.Addr().String()}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { r.serve(c) })
		}
	})
	t.Cleanup(func() { l.Close(); conns.Wait() })
	return r
}

func (r *recorder) serve(c net.Conn) {
	defer c.Close()
	var got []byte
	b := make([]byte, 64<<10)
	for {
		n, err := c.Read(b)
		got = append(got, b[:n]...)
		for {
			m, rest, ok := nextMessage(got)
			if !ok {
				break
			}
			got = rest
			r.mu.Lock()
			r.messages = append(r.messages, m)
			r.mu.Unlock()
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
		if err != nil {
			r.mu.Lock()
			if head, _, whole := bytes.Cut(got, []byte("\r\n\r\n")); len(got) > 0 && !whole {
				r.bad = append(r.bad, string(head))
			} else if len(got) > 0 {
				r.cut++ // in the body: the client broke off, or sent a bad chunk
			}
			r.mu.Unlock()
			return
		}
	}
}

// take returns the messages since the last call.
func (r *recorder) take(t testing.TB) []message {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.bad) > 0 {
		t.Errorf("the gateway sent what is no request: %q", r.bad)
	}
	m := r.messages
	r.messages, r.bad = nil, nil
	return m
}

// Attack 34: each of these is refused, with nothing of it at the upstream, or passed on as the table in docs/gateway.md
// says. The upstream reads strictly.
func TestFraming(t *testing.T) {
	const (
		post  = "POST /a HTTP/1.1\r\nHost: x\r\n"
		chunk = post + "Transfer-Encoding: chunked\r\n\r\n"
		hello = "5\r\nhello\r\n0\r\n\r\n"
		after = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
	)
	got := func(body string) []message { return []message{{"POST", "/a", "x", body}} }
	get := []message{{"GET", "/a", "x", ""}}
	for _, c := range []struct {
		name, request string
		status        string    // 400 if empty
		want          []message // at the upstream, for 200
	}{
		{"length then chunks", post + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n" + hello + after, "", nil},
		{"chunks then length", post + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + hello + after, "", nil},
		{"different lengths", post + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello" + after, "", nil},
		{"the same length twice", post + "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", "", nil},
		{"list of lengths", post + "Content-Length: 5, 5\r\n\r\nhello", "", nil},
		{"length with sign", post + "Content-Length: +5\r\n\r\nhello", "", nil},
		{"negative length", post + "Content-Length: -5\r\n\r\nhello", "", nil},
		{"hexadecimal length", post + "Content-Length: 0x5\r\n\r\nhello", "", nil},
		{"empty length", post + "Content-Length:\r\n\r\n" + after, "", nil},
		{"length beyond 64 bits", post + "Content-Length: 18446744073709551621\r\n\r\nhello", "", nil},
		{"length with underscore", post + "Content_Length: 5\r\n\r\nhello", "", nil},
		{"length with spaces around", post + "Content-Length: \t5 \r\n\r\nhello", "200", got("hello")},

		{"chunks in 1.0", "POST /a HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + hello, "", nil},
		{"chunked, identity", post + "Transfer-Encoding: chunked, identity\r\n\r\n" + hello, "", nil},
		{"identity", post + "Transfer-Encoding: identity\r\n\r\n" + after, "", nil},
		{"gzip, chunked", post + "Transfer-Encoding: gzip, chunked\r\n\r\n" + hello, "", nil},
		{"xchunked", post + "Transfer-Encoding: xchunked\r\n\r\n" + hello, "", nil},
		{"chunked twice", post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + hello, "", nil},
		{"chunked, identity in two lines", post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + hello, "", nil},
		{"chunked behind a vertical tab", post + "Transfer-Encoding:\vchunked\r\n\r\n" + hello, "", nil},
		{"chunked with underscore", post + "Transfer_Encoding: chunked\r\n\r\n" + hello, "", nil},
		{"empty coding", post + "Transfer-Encoding:\r\nContent-Length: 5\r\n\r\nhello", "", nil},
		{"chunked in capitals", post + "TRANSFER-ENCODING: Chunked\r\n\r\n" + hello, "200", got("hello")},

		{"folded line", "GET /a HTTP/1.1\r\nHost: x\r\nA: b\r\n X-Session-Id: c\r\n\r\n", "", nil},
		{"folded first line", "GET /a HTTP/1.1\r\n A: b\r\nHost: x\r\n\r\n", "", nil},
		{"folded coding", post + "Transfer-Encoding:\r\n chunked\r\n\r\n" + hello, "", nil},
		{"bare LF", "GET /a HTTP/1.1\nHost: x\n\n", "", nil},
		{"bare LF after a header", "GET /a HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", "", nil},
		{"bare LF at the end of the header", "GET /a HTTP/1.1\r\nHost: x\r\n\n", "", nil},
		{"bare CR in a value", "GET /a HTTP/1.1\r\nHost: x\r\nA: b\rC: d\r\n\r\n", "", nil},
		{"NUL in a value", "GET /a HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n", "", nil},
		{"space before colon", post + "Content-Length : 5\r\n\r\nhello", "", nil},
		{"space in a name", "GET /a HTTP/1.1\r\nHost: x\r\nA B: c\r\n\r\n", "", nil},
		{"no colon", "GET /a HTTP/1.1\r\nHost: x\r\nA\r\n\r\n", "", nil},
		{"no name", "GET /a HTTP/1.1\r\nHost: x\r\n: b\r\n\r\n", "", nil},
		{"control in a name", "GET /a HTTP/1.1\r\nHost: x\r\nA\x01: b\r\n\r\n", "", nil},

		{"no Host", "GET /a HTTP/1.1\r\n\r\n", "", nil},
		{"no Host in 1.0", "GET /a HTTP/1.0\r\n\r\n", "200", []message{{"GET", "/a", "upstream", ""}}},
		{"two Hosts", "GET /a HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", "", nil},
		{"the same Host twice", "GET /a HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", "", nil},
		{"absolute, other Host", "GET http://y/a HTTP/1.1\r\nHost: x\r\n\r\n", "", nil},
		{"absolute, other port", "GET http://x:81/a HTTP/1.1\r\nHost: x\r\n\r\n", "", nil},
		{"absolute, same Host", "GET http://X/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "200", []message{{"GET", "/a", "X", ""}}},

		{"two spaces", "GET  /a HTTP/1.1\r\nHost: x\r\n\r\n", "", nil},
		{"space in target", "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", "", nil},
		{"tab in the request line", "GET\t/a\tHTTP/1.1\r\nHost: x\r\n\r\n", "", nil},
		{"HTTP/0.9", "GET /a\r\n\r\n", "", nil},
		{"HTTP/2.0", "GET /a HTTP/2.0\r\nHost: x\r\n\r\n", "", nil},
		{"HTTP/2 without TLS", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "", nil},
		{"HTTP/1.2", "GET /a HTTP/1.2\r\nHost: x\r\n\r\n", "", nil},
		{"empty line first", "\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n", "", nil},

		{"chunk size 0x5", chunk + "0x5\r\nhello\r\n0\r\n\r\n", "", nil},
		{"chunk size with sign", chunk + "+5\r\nhello\r\n0\r\n\r\n", "", nil},
		{"negative chunk size", chunk + "-5\r\nhello\r\n0\r\n\r\n", "", nil},
		{"space before chunk size", chunk + " 5\r\nhello\r\n0\r\n\r\n", "", nil},
		{"space after chunk size", chunk + "5 \r\nhello\r\n0\r\n\r\n", "", nil},
		{"empty chunk size", chunk + "\r\nhello\r\n0\r\n\r\n", "", nil},
		{"chunk size beyond 64 bits", chunk + "10000000000000005\r\nhello\r\n0\r\n\r\n", "", nil},
		{"bare LF after chunk size", chunk + "5\nhello\r\n0\r\n\r\n", "", nil},
		{"bare CR after chunk size", chunk + "5\rhello\r\n0\r\n\r\n", "", nil},
		{"bare LF after chunk", chunk + "5\r\nhello\n0\r\n\r\n", "", nil},
		{"nothing after chunk", chunk + "5\r\nhello0\r\n\r\n", "", nil},
		{"chunk longer than its size", chunk + "4\r\nhello\r\n0\r\n\r\n", "", nil},
		{"long chunk extension", chunk + "5;" + strings.Repeat("x", 300) + "\r\nhello\r\n0\r\n\r\n", "", nil},
		{"bare LF in a chunk extension", chunk + "5;a\nb\r\nhello\r\n0\r\n\r\n", "", nil},
		{"chunk extension", chunk + "5;a=\"b;c\"\r\nhello\r\n0\r\n\r\n", "200", got("hello")},
		{"leading zeros", chunk + "00005\r\nhello\r\n000\r\n\r\n", "200", got("hello")},
		{"bare LF after the last chunk", chunk + "5\r\nhello\r\n0\r\n\n", "", nil},

		{"trailer", chunk + "5\r\nhello\r\n0\r\nA: b\r\n\r\n", "200", got("hello")},
		{"length in the trailer", chunk + "5\r\nhello\r\n0\r\nContent-Length: 1\r\n\r\n", "", nil},
		{"coding in the trailer", chunk + "5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n", "", nil},
		{"Host in the trailer", chunk + "5\r\nhello\r\n0\r\nHost: y\r\n\r\n", "", nil},
		{"length in the trailer, announced", post + "Trailer: Content-Length\r\nTransfer-Encoding: chunked\r\n\r\n" + hello, "", nil},
		{"folded trailer", chunk + "5\r\nhello\r\n0\r\nA: b\r\n c\r\n\r\n", "", nil},
		{"bare LF in the trailer", chunk + "5\r\nhello\r\n0\r\nA: b\nC: d\r\n\r\n", "", nil},

		{"GET with a body", "GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", "200", []message{{"GET", "/a", "x", "hello"}}},
		{"length 0", "GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", "200", get},
		{"large header", "GET /a HTTP/1.1\r\nHost: x\r\nCookie: a=" + strings.Repeat("x", 200<<10) + "\r\n\r\n", "431", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.status == "" {
				c.status = "400"
			}
			up := mustRecorder(t)
			g := mustRun(t, "h1", gateway.Config{Upstreams: upstreams(up.url), IdleTimeout: 20 * time.Millisecond})
			answer := g.raw(c.request)
			if !strings.HasPrefix(answer, "HTTP/1.1 "+c.status+" ") && !strings.HasPrefix(answer, "HTTP/1.0 "+c.status+" ") {
				t.Errorf("answer %.80q, want %s", answer, c.status)
			}
			seen := up.take(t)
			for i := range seen {
				if "http://"+seen[i].Host == up.url {
					seen[i].Host = "upstream"
				}
			}
			if d := cmp.Diff(c.want, seen); d != "" {
				t.Errorf("at the upstream (-want +got):\n%s", d)
			}
			if u := g.upstream("a"); !u.Up || u.Failures > 0 {
				t.Errorf("the client's fault counts against the upstream: %+v", u)
			}
			if s := g.Stats(); c.status == "400" && s.Rejected != 1 && c.name != "length in the trailer, announced" { // which is net/http's
				t.Errorf("%d rejections counted, want 1", s.Rejected)
			}
		})
	}
}

// A good request is answered although a bad one follows it, which is then refused, at once and in the right order.
func TestFramingPipelined(t *testing.T) {
	up := mustRecorder(t)
	g := mustRun(t, "h1", gateway.Config{Upstreams: upstreams(up.url)})
	answer := g.raw("POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello\r\n" + // RFC 9112, 2.2
		"POST /2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nworld\r\n0\r\n\r\n" +
		"GET /3 HTTP/1.1\r\nHost: x\r\n\r\nGET /4 HTTP/1.1\r\nHost: x\r\nA: b\nC: d\r\n\r\n")
	var statuses []string
	for _, m := range regexp.MustCompile(`HTTP/1.1 (\d+)`).FindAllStringSubmatch(answer, -1) {
		statuses = append(statuses, m[1])
	}
	if d := cmp.Diff([]string{"200", "200", "200", "400"}, statuses); d != "" {
		t.Errorf("answers (-want +got):\n%s\n%q", d, answer)
	}
	want := []message{{"POST", "/1", "x", "hello"}, {"POST", "/2", "x", "world"}, {"GET", "/3", "x", ""}}
	if d := cmp.Diff(want, up.take(t)); d != "" {
		t.Errorf("at the upstream (-want +got):\n%s", d)
	}
}

// The guard is above TLS, and steps aside for a WebSocket, whose bytes look like anything.
func TestFramingTLS(t *testing.T) {
	up := mustRecorder(t)
	g := mustRun(t, "h1s", gateway.Config{Upstreams: upstreams(up.url)})
	for request, want := range map[string]string{
		"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n": "HTTP/1.1 200",
		"GET / HTTP/1.1\nHost: x\n\n":                            "HTTP/1.1 400",
	} {
		if got := g.raw(request); !strings.HasPrefix(got, want) {
			t.Errorf("%q: %q, want %s", request, got, want)
		}
	}
	c, err := net.Dial("tcp", strings.TrimPrefix(g.url, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if b, _ := io.ReadAll(c); !bytes.Contains(b, []byte("400 Bad Request")) {
		t.Errorf("plain HTTP on the port for TLS: %q, want 400", b)
	}
}

func TestFramingWebSocket(t *testing.T) {
	for _, proto := range []string{"h1", "h1s"} {
		t.Run(proto, func(t *testing.T) {
			g := mustRun(t, proto, gateway.Config{Upstreams: upstreams(mustApp(t, switcher("websocket")))})
			c, br, _ := g.mustUpgrade("websocket")
			for _, bytes := range []string{"\x81\x05\r\n \x00:\n", "GET / HTTP/1.1\nHost: x\n\n", "\n"} {
				fmt.Fprint(c, bytes)
				b := make([]byte, len(bytes))
				if _, err := io.ReadFull(br, b); err != nil || string(b) != bytes {
					t.Errorf("echo %q, %v, want %q", b, err, bytes)
				}
			}
		})
	}
}

// Whatever a client sends: what reaches the upstream is what the strict reader finds in it, in that order, perhaps not
// all. Nothing is found in one message's body, and nothing is cut or joined differently.
func FuzzFramingDifferential(f *testing.F) {
	const end = "GET /end HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello\r\nGET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nA: b\r\n\r\n",
		"POST / HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nabc",
	} {
		f.Add([]byte(seed))
	}
	up := mustRecorder(f)
	g := mustRun(f, "h1", gateway.Config{Upstreams: upstreams(up.url), ReadHeaderTimeout: 20 * time.Millisecond, IdleTimeout: 20 * time.Millisecond})
	f.Fuzz(func(t *testing.T, sent []byte) {
		if len(sent) > 4<<10 {
			return
		}
		sent = append(sent, end...)
		c, err := net.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(100 * time.Millisecond)) // the gateway may wait for the rest of a body
		_, _ = c.Write(sent)
		_, err = io.Copy(io.Discard, c)
		if os.IsTimeout(err) {
			// A request that is still on its way must not be taken for the next input's.
			c.Close()
			time.Sleep(time.Millisecond)
		}
		seen := up.take(t)
		if u := g.Upstreams()[0]; !u.Up {
			t.Error("upstream is down")
		}
		rest := sent
		for i, got := range seen {
			var want message
			var ok bool
			if i > 0 && want.Method == "" {
				rest = bytes.TrimPrefix(rest, []byte("\r\n")) // which may follow a POST
			}
			if want, rest, ok = nextMessage(rest); !ok {
				t.Fatalf("request %d %+v reached the upstream, of which there is nothing in %q", i+1, got, sent)
			}
			if !strings.HasPrefix(want.Target, "/") { // an absolute URL
				want.Target, got.Target = "", ""
			}
			want.Host, got.Host = strings.ToLower(want.Host), strings.ToLower(got.Host)
			if want.Host == "" {
				got.Host = ""
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Fatalf("request %d of %q at the upstream (-want +got):\n%s", i+1, sent, d)
			}
		}
	})
}
