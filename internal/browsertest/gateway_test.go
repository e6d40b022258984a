package browsertest

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha1" // of the WebSocket protocol (RFC 6455, section 4.2.2)
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-sessions/holdfast/gateway"
)

const megabyte = 1 << 20

// streams is an application server that answers a browser in every way but a plain page.
type streams struct {
	name string
	got  chan string // what the browser said that it got
}

func (s *streams) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := http.NewResponseController(w)
	switch r.URL.Path {
	case "/":
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, "<!doctype html><title>%s</title><link rel=icon href=data:,>", s.name)
	case "/events": // the second event when the browser has the first
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprintf(w, "retry: 20\ndata: %s one\n\n", s.name)
		_ = c.Flush()
		select {
		case <-s.got:
		case <-r.Context().Done():
			return
		}
		fmt.Fprintf(w, "data: %s two\n\n", s.name)
		_ = c.Flush()
		<-r.Context().Done()
	case "/got":
		s.got <- s.name
	case "/socket":
		s.echo(w, r)
	case "/down":
		for range 32 {
			_, _ = w.Write(make([]byte, megabyte)) // the browser counts what it gets
		}
	case "/up":
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n/megabyte, " ", err)
	}
}

// echo is a WebSocket (RFC 6455) that answers each short text with the name of the server and the text.
func (s *streams) echo(w http.ResponseWriter, r *http.Request) {
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		base64.StdEncoding.EncodeToString(sum[:]))
	for {
		text, err := readText(rw.Reader)
		if err != nil {
			return // the browser closed it
		}
		answer := s.name + " " + text
		_, _ = c.Write(append([]byte{0x81, byte(len(answer))}, answer...)) // the browser may be gone
	}
}

// readText reads a masked text frame of up to 125 bytes.
func readText(r *bufio.Reader) (string, error) {
	head := make([]byte, 6)
	if _, err := io.ReadFull(r, head); err != nil {
		return "", err
	}
	text := make([]byte, head[1]&0x7f)
	if _, err := io.ReadFull(r, text); err != nil || head[0] != 0x81 || len(text) > 125 {
		return "", io.ErrUnexpectedEOF // a close, which is all that the tests send besides
	}
	for i := range text {
		text[i] ^= head[2+i%4]
	}
	return string(text), nil
}

// A browser over HTTP/2 at the gateway: pages, an event stream, which nothing holds up, a WebSocket and large bodies come from the
// one server that the affinity cookie names; when it ends, the browser connects its event stream again, elsewhere.
func TestGatewayStreams(t *testing.T) {
	t.Parallel()
	apps := make(map[string]*httptest.Server)
	config := gateway.Config{Affinity: gateway.AffinityCookie, Key: make([]byte, 32)}
	_, _ = rand.Read(config.Key) // never fails
	for _, name := range []string{"a", "b", "c"} {
		apps[name] = httptest.NewServer(&streams{name: name, got: make(chan string)})
		t.Cleanup(apps[name].Close)
		config.Upstreams = append(config.Upstreams, gateway.Upstream{ID: name, URL: apps[name].URL})
	}
	b := newTab(t)
	base := startGateway(t, config)

	b.open(base + "/")
	home := eval[string](b, "document.title")
	if p := eval[string](b, `performance.getEntriesByType("navigation")[0].nextHopProtocol`); p != "h2" {
		t.Errorf("protocol %q, want h2", p)
	}
	if c := b.cookie("__Host-holdfast-upstream"); c == nil || !c.Secure || !c.HTTPOnly {
		t.Errorf("affinity cookie %+v", c)
	}

	events := eval[string](b, `new Promise(done => {
		window.events = []
		window.source = new EventSource("/events")
		source.onmessage = async e => {
			events.push(e.data)
			if (events.length == 1) await fetch("/got")
			if (events.length == 2) done(events.join())
		}
	})`)
	if want := home + " one," + home + " two"; events != want {
		t.Errorf("event stream %q, want %q", events, want)
	}
	socket := eval[string](b, `new Promise((done, failed) => {
		const s = new WebSocket("wss://" + location.host + "/socket"), got = []
		s.onopen = () => s.send("one")
		s.onerror = () => failed("error")
		s.onmessage = e => {
			got.push(e.data)
			if (got.length < 2) s.send("two")
			else { s.close(); done(got.join()) }
		}
	})`)
	if want := home + " one," + home + " two"; socket != want {
		t.Errorf("WebSocket %q, want %q", socket, want)
	}
	if n := eval[int](b, `fetch("/down").then(r => r.blob()).then(b => b.size)`); n != 32*megabyte {
		t.Errorf("download of %d bytes, want %d", n, 32*megabyte)
	}
	upload := `fetch("/up", {method: "POST", body: new Blob([new Uint8Array(32 << 20)])}).then(r => r.text())`
	if s := eval[string](b, upload); s != "32 <nil>" {
		t.Errorf("upload: %q, want 32 MB", s)
	}

	eval[bool](b, "events.length = 2, true")
	apps[home].CloseClientConnections()
	apps[home].Listener.Close()
	again := eval[string](b, `new Promise(done => {
		const look = () => events.length > 2 ? done(events[2]) : setTimeout(look, 5)
		look()
	})`)
	if !strings.HasSuffix(again, " one") || strings.HasPrefix(again, home) {
		t.Errorf("after the end of %s the event stream says %q, want another server", home, again)
	}
	if s := eval[string](b, upload); s != "32 <nil>" {
		t.Errorf("upload to another server: %q, want 32 MB", s)
	}
	eval[bool](b, "source.close(), true")
}

// startGateway runs a gateway with TLS until the test ends, and returns its URL.
func startGateway(t *testing.T, c gateway.Config) string {
	t.Helper()
	c.TLS = &tls.Config{Certificates: []tls.Certificate{certificate().Certificate}}
	c.Logger = slog.New(slog.DiscardHandler)
	g, err := gateway.New(c)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := g.Run(ctx, l); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	return "https://app.holdfast.test:" + strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}
