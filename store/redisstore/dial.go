package redisstore

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/redis/rueidis"
)

const (
	// connectTimeout bounds making a connection, login included.
	connectTimeout = 5 * time.Second
	// A connection on which nothing arrives for pingAfter is asked for a sign of life, and given up when none comes
	// within replyTimeout; what waits on it fails then. Callers' deadlines are heeded whatever these are.
	pingAfter    = time.Second
	replyTimeout = 3 * time.Second
	// bufferSize is of each connection's two buffers; a longer record takes more than one system call.
	bufferSize = 32 << 10
)

// dialer makes connections, which end with the store.
type dialer struct {
	tls  *tls.Config // nil: plain TCP
	ends context.Context
}

func (d *dialer) dial(ctx context.Context, addr string) (net.Conn, error) {
	if d.ends.Err() != nil {
		return nil, driver.ErrClosed
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	defer context.AfterFunc(d.ends, cancel)()
	tcp := &net.Dialer{KeepAlive: pingAfter}
	var conn net.Conn
	var err error
	if d.tls == nil {
		conn, err = tcp.DialContext(ctx, "tcp", addr)
	} else {
		// Without a ServerName in its configuration it expects the certificate to be for the host in addr.
		conn, err = (&tls.Dialer{NetDialer: tcp, Config: d.tls}).DialContext(ctx, "tcp", addr)
	}
	if err != nil {
		return nil, err
	}
	// rueidis logs in without looking at the context.
	return &closer{conn, context.AfterFunc(d.ends, func() { conn.Close() })}, nil
}

// closer is a connection that also the end of a context closes.
type closer struct {
	net.Conn
	forget func() bool
}

func (c *closer) Close() error {
	c.forget()
	return c.Conn.Close()
}

// clientOption says how to talk to a server, or to several, and leaves out which.
func clientOption(l login, dial func(ctx context.Context, addr string) (net.Conn, error)) rueidis.ClientOption {
	return rueidis.ClientOption{
		DialCtxFn: func(ctx context.Context, addr string, _ *net.Dialer, _ *tls.Config) (net.Conn, error) {
			return dial(ctx, addr)
		},
		AuthCredentialsFn: func(rueidis.AuthCredentialsContext) (rueidis.AuthCredentials, error) {
			password, err := l.read()
			return rueidis.AuthCredentials{Username: l.user, Password: password}, err
		},
		ClientName:    "holdfast",
		ClientSetInfo: rueidis.DisableClientSetInfo, // Redis 7.0 does not know it, and it would need a right

		Dialer:              net.Dialer{Timeout: connectTimeout, KeepAlive: pingAfter},
		ConnWriteTimeout:    replyTimeout,
		ReadBufferEachConn:  bufferSize,
		WriteBufferEachConn: bufferSize,
		RingScaleEachConn:   ringScale,
		BlockingPoolSize:    1, // not used
		DisableCache:        true,
		// Always, so that a connection the server closes while nothing is sent is noticed then, not by the next
		// command, which would fail.
		AlwaysPipelining: true,
		// Reads that meet a broken connection are sent once more. rueidis never repeats a script or DEL: the first
		// may have been carried out.
		RetryDelay: func(attempts int, _ rueidis.Completed, _ error) time.Duration {
			if attempts == 1 {
				return 0
			}
			return -1
		},
	}
}

// newSingle makes a client of one server that connects by its first command, under that command's deadline: rueidis
// connects in NewClient, without a context, and keeps a client whose first connection failed. So that one is made to
// fail.
func newSingle(o rueidis.ClientOption, addr string) (rueidis.Client, error) {
	errLater := errors.New("connected by the first command")
	dial, first := o.DialCtxFn, true // read again only after NewClient has returned
	o.DialCtxFn = func(ctx context.Context, addr string, d *net.Dialer, t *tls.Config) (net.Conn, error) {
		if first {
			return nil, errLater
		}
		return dial(ctx, addr, d, t)
	}
	o.InitAddress, o.ForceSingleClient = []string{addr}, true
	client, err := rueidis.NewClient(o)
	first = false
	if !errors.Is(err, errLater) {
		return nil, err
	}
	return client, nil
}

// roleOf asks a server, on a connection that nothing was sent on yet, whether it is a primary ("master") or a replica.
// It logs in, as rueidis does again after it. A refusal is no error here and no role: rueidis meets it too.
func roleOf(conn net.Conn, l login) (string, error) {
	password, err := l.read()
	if err != nil {
		return "", err
	}
	hello := []string{"HELLO", "3"}
	if l.user != "" || password != "" {
		user := l.user
		if user == "" {
			user = "default"
		}
		hello = append(hello, "AUTH", user, password)
	}
	var request strings.Builder
	fmt.Fprintf(&request, "*%d\r\n", len(hello))
	for _, word := range hello {
		fmt.Fprintf(&request, "$%d\r\n%s\r\n", len(word), word)
	}
	if err := conn.SetDeadline(time.Now().Add(replyTimeout)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, request.String()); err != nil {
		return "", err
	}
	var words []string
	// The buffer holds no more than the reply, as nothing else was asked.
	if err := readReply(bufio.NewReader(conn), &words, 0); err != nil {
		return "", err
	}
	for i := 0; i+1 < len(words); i += 2 {
		if words[i] == "role" {
			return words[i+1], conn.SetDeadline(time.Time{})
		}
	}
	return "", conn.SetDeadline(time.Time{})
}

// readReply appends the words of a reply in RESP3 to words. What is nested is one empty word, as nothing in it matters
// here; a refusal is none.
func readReply(r *bufio.Reader, words *[]string, depth int) error {
	errBad := errors.New("the server does not speak Redis' protocol")
	line, err := r.ReadSlice('\n') // at most the buffer, 4 KiB
	if err != nil {
		return err
	}
	if len(line) < 3 || depth > 4 {
		return errBad
	}
	kind, rest := line[0], string(line[1:len(line)-2])
	n, err := strconv.Atoi(rest)
	switch kind {
	case '-':
		return nil
	case '+', ':', '#', ',', '_', '(':
		*words = append(*words, rest)
		return nil
	case '$', '*', '%':
		if err != nil || n < -1 || n > 4096 {
			return errBad
		}
	default:
		return errBad
	}
	if kind == '$' {
		b := make([]byte, max(n, -2)+2)
		if n < 0 {
			b = nil
		}
		if _, err := io.ReadFull(r, b); err != nil {
			return err
		}
		*words = append(*words, string(b[:max(0, len(b)-2)]))
		return nil
	}
	if kind == '%' {
		n *= 2
	}
	into := words
	if depth > 0 {
		*words, into = append(*words, ""), new([]string)
	}
	for range n {
		if err := readReply(r, into, depth+1); err != nil {
			return err
		}
	}
	return nil
}
