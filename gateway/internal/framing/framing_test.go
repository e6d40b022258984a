package framing

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// Whole cases are in package gateway (TestFraming), through a real server. Here: what is passed on of each, and why not
// the rest.
func TestParser(t *testing.T) {
	const post = "POST / HTTP/1.1\r\nHost: x\r\n"
	for _, c := range []struct {
		passed, held string
		want         error
	}{
		{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "", nil},
		{"GET / HTTP/1.1", "\nHost: x\n\n", ErrBareLF},
		{"GET / HTTP/1.1\r\nHost: x\r\n A: b\r", "\n\r\n", ErrFolded},
		{post + "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r", "\n0\r\n\r\n", ErrLengthAndChunk},
		{post + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "\x16\x03", ErrRequestLine},
		{post + "Transfer-Encoding: chunked\r\n\r\n5", " \r\n", ErrChunkSize},
		{post + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello", "!\r\n", ErrChunkEnd},
		{post + "Content-Length: 2\r\n\r\n\n\nGET / HTTP/1.0\r\n\r\n", "", nil},
		{post + "Content-Length: 0\r\n\r\n\r\nGET / HTTP/1.0\r\n\r\n", "\r\n", ErrRequestLine},
	} {
		p := parser{max: 1 << 10}
		n, err := p.feed([]byte(c.passed + c.held))
		if n != len(c.passed) || !errors.Is(err, c.want) {
			t.Errorf("%q: %d bytes passed, %v, want %d, %v", c.passed+c.held, n, err, len(c.passed), c.want)
		}
	}
	p := parser{max: 100}
	if _, err := p.feed([]byte("GET / HTTP/1.1\r\nA: " + strings.Repeat("x", 100))); err != ErrTooLarge {
		t.Errorf("100 bytes of header in one line: %v, want %v", err, ErrTooLarge)
	}
	p = parser{max: 100}
	if _, err := p.feed([]byte("GET / HTTP/1.1\r\n" + strings.Repeat("A: b\r\n", 20))); err != ErrTooLarge {
		t.Errorf("many lines: %v, want %v", err, ErrTooLarge)
	}
}

// The server asks with one byte whether the client is still there: it learns of its end, and not that the next request
// is bad. It learns that when it reads it.
func TestConn(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	var refused []error
	c := NewConn(server, 1<<10, func(err error) { refused = append(refused, err) })
	go func() {
		_, _ = io.WriteString(client, "GET / HTTP/1.1\r\nHost: x\r\n\r\n\nbad")
		_, _ = io.WriteString(client, "more")
	}()
	b := make([]byte, 100)
	n, err := c.Read(b)
	if n != 27 || err != nil {
		t.Fatalf("%q, %v, want the first request", b[:n], err)
	}
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	var timeout net.Error
	if n, err := c.Read(b[:1]); n != 0 || !errors.As(err, &timeout) || !timeout.Timeout() || len(refused) > 0 || c.Refused() {
		t.Errorf("question for the client: %d, %v, refused %v, want a timeout", n, err, refused)
	}
	for range 2 {
		if n, err := c.Read(b); n != 0 || err != ErrRequestLine || len(refused) != 1 || !c.Refused() {
			t.Errorf("next request: %d, %v, refused %v, want %v once", n, err, refused, ErrRequestLine)
		}
	}
}

// Bytes in any parts give the same as at once; and net/http takes what is passed on apart at the same places.
func FuzzParser(f *testing.F) {
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello\r\nGET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nA: b\r\n\r\nGET / HTTP/1.0\r\n\r\n",
		"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nUpgrade: websocket\r\n\r\n",
	} {
		f.Add([]byte(seed), uint8(3))
	}
	f.Fuzz(func(t *testing.T, b []byte, step uint8) {
		whole := parser{max: 4 << 10}
		n, want := whole.feed(b)
		if (n < len(b)) != (want != nil) {
			t.Fatalf("%d of %d bytes passed, %v", n, len(b), want)
		}
		parts, passed := parser{max: 4 << 10}, 0
		var ends []int // of messages
		var err error
		for passed < len(b) && err == nil {
			// One by one, to see where messages end; in larger parts if there are none.
			k := 1
			if len(ends) == 0 && step > 0 {
				k = min(int(step), len(b)-passed)
			}
			var n int
			n, err = parts.feed(b[passed : passed+k])
			if passed += n; k == 1 && n == 1 && parts.atRest() {
				ends = append(ends, passed)
			}
		}
		if passed != n || err != want {
			t.Fatalf("in parts %d bytes, %v; at once %d, %v", passed, err, n, want)
		}
		ends = ends[:0]
		single := parser{max: 4 << 10}
		for i := range n {
			_, _ = single.feed(b[i : i+1])
			if single.atRest() {
				ends = append(ends, i+1)
			}
		}

		src := bytes.NewReader(b[:n])
		br := bufio.NewReader(src)
		at := func() int { return n - src.Len() - br.Buffered() }
		for post := false; ; {
			if next, _ := br.Peek(2); post && string(next) == "\r\n" { // as http.Server does
				_, _ = br.Discard(2)
			}
			req, err := http.ReadRequest(br)
			if err != nil {
				return // what is left is no whole message, or none that net/http takes
			}
			if !slices.Contains(ends, at()) && req.Body == http.NoBody {
				t.Fatalf("net/http sees the end of a message at %d, the guard at %v of %q", at(), ends, b[:n])
			}
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				return
			}
			if !slices.Contains(ends, at()) {
				t.Fatalf("net/http sees the end of a body at %d, the guard at %v of %q", at(), ends, b[:n])
			}
			post = req.Method == "POST"
		}
	})
}

// What the guard costs for a typical request of a browser.
func BenchmarkParser(b *testing.B) {
	request := []byte("GET /shop/items?page=2 HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n" +
		"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\nAccept-Language: de,en-US;q=0.7,en;q=0.3\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n" +
		"Connection: keep-alive\r\nCookie: __Host-Http-session=q83vq83vq83vq83vq83vq83vq83vq83vq83vq83vq80; __Host-holdfast-upstream=AAAAAAAAAAAAAAAAAAAAAA\r\n" +
		"Upgrade-Insecure-Requests: 1\r\nSec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Site: same-origin\r\nPriority: u=0, i\r\n\r\n")
	b.SetBytes(int64(len(request)))
	b.ReportAllocs()
	p := parser{max: 64 << 10}
	for b.Loop() {
		if n, err := p.feed(request); n != len(request) || err != nil {
			b.Fatal(n, err)
		}
	}
}
