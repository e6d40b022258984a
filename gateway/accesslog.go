package gateway

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

// AccessLogFormat is how the lines of the access log look.
type AccessLogFormat string

const (
	// AccessLogJSON has an object in each line, with everything that Request has.
	AccessLogJSON AccessLogFormat = "json"
	// AccessLogCombined is the combined log format of Apache and nginx.
	AccessLogCombined AccessLogFormat = "combined"
)

// Request is what Config.OnRequest gets to know, and the access log. It holds no secret.
type Request struct {
	// Time is when it came.
	Time time.Time
	// ID names the request, to upstreams too, in X-Request-Id.
	ID string
	// Client is the client's address, as far back as trusted proxies tell. It is the zero Addr if that is unknown.
	Client netip.Addr
	Method string
	// Host is what the client asked for.
	Host string
	// Path is without query and without ;parameters.
	Path string
	// Proto is HTTP/1.0, HTTP/1.1 or HTTP/2.0; TLS is whether the connection was encrypted.
	Proto string
	TLS   bool
	// Status is what the client got, perhaps broken off midway; 499 if it went away before.
	Status int
	// BytesIn and BytesOut are those of the bodies, without an upgraded connection's.
	BytesIn, BytesOut int64
	// Upstream is the ID of the one that answered, or empty.
	Upstream string
	// Bound reports that the answer bound the client to Upstream: for the first time, or because it had to move.
	Bound bool
	// Attempts counts how often the request was sent or tried to be, over all upstreams.
	Attempts int
	// UpstreamDuration is from the beginning of the last attempt until the header of its answer; 0 if there was none.
	UpstreamDuration time.Duration
	// Duration is until the last byte of the answer.
	Duration time.Duration
}

// entry is what becomes a line.
type entry struct {
	Request
	referrer, userAgent string
}

// pathOf returns the path of r without parameters, which may hold a token (;jsessionid=).
func pathOf(r *http.Request) string {
	path, _, _ := strings.Cut(r.URL.Path, ";")
	return path
}

// request returns what there is to know of an exchange that is over.
func (x *exchange) request() Request {
	r := Request{
		Time: x.began, ID: x.id, Client: x.origin.client, Method: x.in.Method, Host: x.in.Host, Path: pathOf(x.in), Proto: x.in.Proto, TLS: x.in.TLS != nil,
		Status: x.status, BytesOut: x.writer.n, Bound: x.bound, Attempts: x.attempts, UpstreamDuration: x.answeredIn, Duration: time.Since(x.began),
	}
	if x.clientBody != nil {
		r.BytesIn = x.clientBody.n.Load()
	}
	if x.served != nil {
		r.Upstream = x.served.id
	}
	return r
}

// The access log is written by one goroutine, in batches.
const (
	accessLogEvery = time.Second
	accessLogBatch = 64 << 10 // bytes that are written at once, and sooner
	accessLogMax   = 1 << 20  // bytes that wait
)

type accessLog struct {
	w       io.Writer
	combine bool
	logger  *slog.Logger
	full    chan struct{} // holds one: a batch is there
	dropped atomic.Uint64 // lines
	lines   sync.Pool     // *[]byte

	// mu guards the fields below.
	mu      sync.Mutex
	pending []byte

	// writing is held while w is written to, and guards the fields below.
	writing sync.Mutex
	spare   []byte
	told    uint64 // lines dropped that were logged
	broken  bool   // the last write failed
}

// newAccessLog returns nil if there is none.
func newAccessLog(c Config) *accessLog {
	if c.AccessLog == nil {
		return nil
	}
	return &accessLog{w: c.AccessLog, combine: c.AccessLogFormat == AccessLogCombined, logger: c.Logger, full: make(chan struct{}, 1)}
}

// add takes a line for r. It never waits for the writer.
func (l *accessLog) add(r *entry) {
	b, ok := l.lines.Get().(*[]byte)
	if !ok {
		b = new([]byte)
	}
	if l.combine {
		*b = r.appendCombined((*b)[:0])
	} else {
		*b = r.appendJSON((*b)[:0])
	}
	l.mu.Lock()
	fits := len(l.pending)+len(*b) <= accessLogMax
	if fits {
		l.pending = append(l.pending, *b...)
	}
	batch := len(l.pending) >= accessLogBatch
	l.mu.Unlock()
	l.lines.Put(b)
	if !fits {
		l.dropped.Add(1)
	}
	if batch {
		select {
		case l.full <- struct{}{}:
		default:
		}
	}
}

// run writes until ctx ends. What comes after that is for flush.
func (l *accessLog) run(ctx context.Context) {
	tick := time.NewTicker(accessLogEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-l.full:
		}
		l.flush()
	}
}

func (l *accessLog) flush() {
	l.writing.Lock()
	defer l.writing.Unlock()
	l.mu.Lock()
	batch := l.pending
	l.pending = l.spare[:0]
	l.mu.Unlock()
	l.spare = batch
	if len(batch) == 0 {
		return
	}
	_, err := l.w.Write(batch)
	if err != nil && !l.broken {
		l.logger.Error("access log not written: its lines are lost until it can be", "err", err)
	}
	l.broken = err != nil
	if dropped := l.dropped.Load(); dropped > l.told {
		l.logger.Warn("access log lines dropped: they are not taken as fast as they come", "lines", dropped-l.told)
		l.told = dropped
	}
}

func (r *entry) appendJSON(b []byte) []byte {
	str := func(name, v string) {
		b = append(b, name...)
		b = appendJSONString(b, v)
	}
	num := func(name string, v int64) {
		b = append(b, name...)
		b = strconv.AppendInt(b, v, 10)
	}
	ms := func(name string, d time.Duration) {
		b = append(b, name...)
		b = strconv.AppendInt(b, int64(d/time.Millisecond), 10)
		us := d % time.Millisecond / time.Microsecond
		b = append(b, '.', '0'+byte(us/100), '0'+byte(us/10%10), '0'+byte(us%10))
	}
	b = append(b, `{"time":"`...)
	b = r.Time.UTC().AppendFormat(b, "2006-01-02T15:04:05.000Z")
	b = append(b, `","client":"`...)
	if r.Client.IsValid() {
		b = r.Client.AppendTo(b)
	}
	str(`","request_id":`, r.ID)
	str(`,"method":`, r.Method)
	str(`,"host":`, r.Host)
	str(`,"path":`, r.Path)
	str(`,"proto":`, r.Proto)
	b = append(b, `,"tls":`...)
	b = strconv.AppendBool(b, r.TLS)
	num(`,"status":`, int64(r.Status))
	num(`,"bytes_in":`, r.BytesIn)
	num(`,"bytes_out":`, r.BytesOut)
	ms(`,"duration_ms":`, r.Duration)
	str(`,"upstream":`, r.Upstream)
	ms(`,"upstream_ms":`, r.UpstreamDuration)
	num(`,"attempts":`, int64(r.Attempts))
	b = append(b, `,"bound":`...)
	b = strconv.AppendBool(b, r.Bound)
	str(`,"referrer":`, r.referrer)
	str(`,"user_agent":`, r.userAgent)
	return append(b, "}\n"...)
}

// appendCombined appends: client - - [time] "METHOD path PROTO" status bytes "referrer" "user agent".
func (r *entry) appendCombined(b []byte) []byte {
	if r.Client.IsValid() {
		b = r.Client.AppendTo(b)
	} else {
		b = append(b, '-')
	}
	b = append(b, " - - ["...)
	b = r.Time.AppendFormat(b, "02/Jan/2006:15:04:05 -0700")
	b = append(b, `] "`...)
	b = appendEscaped(b, r.Method)
	b = append(b, ' ')
	b = appendEscaped(b, r.Path)
	b = append(b, ' ')
	b = append(b, r.Proto...)
	b = append(b, `" `...)
	b = strconv.AppendInt(b, int64(r.Status), 10)
	b = append(b, ' ')
	b = strconv.AppendInt(b, r.BytesOut, 10)
	for _, v := range [...]string{r.referrer, r.userAgent} {
		b = append(b, ` "`...)
		if v == "" {
			v = "-"
		}
		b = appendEscaped(b, v)
		b = append(b, '"')
	}
	return append(b, '\n')
}

// referrerOf returns where the client came from, without the query, parameters and fragment, which may hold a token, and
// without a user name or password.
func referrerOf(r *http.Request) string {
	v := r.Header.Get("Referer")
	if end := strings.IndexAny(v, "?#;"); end >= 0 {
		v = v[:end]
	}
	if scheme, rest, ok := strings.Cut(v, "://"); ok {
		host, path, _ := strings.Cut(rest, "/")
		if at := strings.LastIndexByte(host, '@'); at >= 0 {
			v = scheme + "://" + host[at+1:] + "/" + path
		}
	}
	return v
}

const hexDigits = "0123456789abcdef"

// appendEscaped writes quotes, backslashes and everything that is not printable ASCII as \xHH, as nginx does.
func appendEscaped(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			b = append(b, '\\', 'x', hexDigits[c>>4], hexDigits[c&15])
		} else {
			b = append(b, c)
		}
	}
	return b
}

// appendJSONString appends s as a string of JSON. What is not UTF-8 becomes U+FFFD.
func appendJSONString(b []byte, s string) []byte {
	b = append(b, '"')
	plain := 0
	for plain < len(s) && s[plain] >= ' ' && s[plain] < 0x7f && s[plain] != '"' && s[plain] != '\\' {
		plain++ // most strings are, to their end
	}
	b = append(b, s[:plain]...)
	for i := plain; i < len(s); {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
			i++
		case c < ' ' || c == 0x7f:
			b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			i++
		case c < utf8.RuneSelf:
			b = append(b, c)
			i++
		default:
			r, n := utf8.DecodeRuneInString(s[i:])
			b = utf8.AppendRune(b, r)
			i += n
		}
	}
	return append(b, '"')
}
