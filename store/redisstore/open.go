package redisstore

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
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

// Open connects to the server that a URL names, asks it what it is, and checks that the user has the rights the
// store needs:
//
//	redis://[[user]:password@]host[:port][/db][?prefix=holdfast:&password_file=...]
//	rediss://...[&ca_file=...&server_name=...&cert_file=...&key_file=...]
//
// Its errors are one line that says what to do, and never show the password. Where the server cannot be reached
// they match driver.ErrUnavailable.
func Open(ctx context.Context, url string) (*Store, error) {
	c, err := parseURL(url)
	if err != nil {
		return nil, fmt.Errorf("redis store: %w", err)
	}
	s, err := newStore(c)
	if err != nil {
		return nil, fmt.Errorf("redis store: %w", err)
	}
	if err := s.start(ctx, c); err != nil {
		_ = s.Close() // always nil
		return nil, fmt.Errorf("redis store %s: %w", c.addr, err)
	}
	return s, nil
}

// newStore makes a store that is not connected yet.
func newStore(c config) (*Store, error) {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Store{
		prefix:  c.prefix,
		slots:   make(chan struct{}, maxCalls),
		closing: make(chan struct{}),
		ctx:     ctx,
		cancel:  cancel,
		save:    rueidis.NewLuaScript(preludeLua + saveLua),
		touch:   rueidis.NewLuaScript(preludeLua + touchLua),
		merge:   rueidis.NewLuaScript(preludeLua + mergeLua),
	}
	// rueidis connects in NewClient, without a context, and keeps a client whose first connection failed. Fail that
	// one, so that the first command connects, under the caller's deadline.
	errLater := errors.New("connected by the first command")
	connect := func(context.Context) (net.Conn, error) { return nil, errLater }
	client, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress:       []string{c.addr},
		ForceSingleClient: true,
		DialCtxFn: func(ctx context.Context, _ string, _ *net.Dialer, _ *tls.Config) (net.Conn, error) {
			return connect(ctx)
		},
		AuthCredentialsFn: func(rueidis.AuthCredentialsContext) (rueidis.AuthCredentials, error) {
			password, err := c.credentials()
			return rueidis.AuthCredentials{Username: c.user, Password: password}, err
		},
		SelectDB:      c.db,
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
	})
	if !errors.Is(err, errLater) {
		cancel()
		return nil, err
	}
	dialer := &net.Dialer{Timeout: connectTimeout, KeepAlive: pingAfter}
	connect = func(ctx context.Context) (net.Conn, error) {
		var conn net.Conn
		var err error
		if c.tls == nil {
			conn, err = dialer.DialContext(ctx, "tcp", c.addr)
		} else {
			conn, err = (&tls.Dialer{NetDialer: dialer, Config: c.tls}).DialContext(ctx, "tcp", c.addr)
		}
		if err != nil {
			return nil, err
		}
		// rueidis logs in without looking at the context.
		return closer{conn, context.AfterFunc(s.ctx, func() { conn.Close() })}, nil
	}
	s.client = client
	return s, nil
}

// closer is a connection that also the end of the store's context closes.
type closer struct {
	net.Conn
	forget func() bool
}

func (c closer) Close() error {
	c.forget()
	return c.Conn.Close()
}

// start connects, and fills in s.description.
func (s *Store) start(ctx context.Context, c config) error {
	info, err := s.do(ctx, func(ctx context.Context) rueidis.RedisResult {
		return s.client.Do(ctx, s.client.B().Info().Build())
	}).ToString()
	if err != nil && deniedCommand(err) != "INFO" { // which is not needed; see describe
		return openError(err, c)
	}
	facts := parseInfo(info)
	if facts["redis_mode"] == "cluster" {
		return errors.New("the server is part of a Redis Cluster; want a single server")
	}
	s.description = describe(facts)
	s.description.MaxBytes = s.bulkLimit(ctx)

	var random driver.ID
	_, _ = rand.Read(random[:]) // never fails
	probe := rueidis.NewLuaScript(probeLua)
	denied, err := s.do(ctx, func(ctx context.Context) rueidis.RedisResult {
		return probe.Exec(ctx, s.client, []string{s.key(random)}, nil)
	}).ToString()
	if err != nil {
		return openError(err, c)
	}
	if denied != "" {
		return permissionError(c, "run "+denied)
	}
	return nil
}

// bulkLimit returns the longest string the server takes. Not everybody may ask, and some servers do not say.
func (s *Store) bulkLimit(ctx context.Context) int {
	const setting = "proto-max-bulk-len"
	settings, err := s.do(ctx, func(ctx context.Context) rueidis.RedisResult {
		return s.client.Do(ctx, s.client.B().ConfigGet().Parameter(setting).Build())
	}).AsStrMap()
	if err == nil {
		if n, err := strconv.Atoi(settings[setting]); err == nil && n > 0 {
			return n
		}
	}
	return defaultMaxBytes
}

// rights are what the store uses. It does without the second line: scan and mget are for List, info and config|get
// for Describe and the size limit, ping is to notice a dead connection.
const rights = "+evalsha +eval +get +set +del +getrange +setrange +pexpire " +
	"+scan +mget +info +config|get +ping"

func permissionError(c config, what string) error {
	user := c.user
	if user == "" {
		user = "default"
	}
	return fmt.Errorf("user %q may not %s; grant it with ACL SETUSER %s ~%s* %s", user, what, user, c.prefix, rights)
}

var quotedCommand = regexp.MustCompile(`'([A-Za-z|]+)' command`)

// deniedCommand returns the command that err says the user may not run, or "".
func deniedCommand(err error) string {
	if e, ok := rueidis.IsRedisErr(err); ok && strings.HasPrefix(e.Error(), "NOPERM") {
		if m := quotedCommand.FindStringSubmatch(e.Error()); m != nil {
			return strings.ToUpper(m[1])
		}
	}
	return ""
}

// openError explains why the first command failed.
func openError(err error, c config) error {
	var (
		dns       *net.DNSError
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
		record    tls.RecordHeaderError
	)
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, driver.ErrClosed):
		return err
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		hint := "and whether the server hangs"
		if c.tls != nil {
			hint = "and whether the server speaks TLS there: if not, write redis:// instead of rediss://"
		}
		return driver.Unavailable(errors.New("no answer in time; check host and port, firewalls, " + hint))
	case errors.Is(err, syscall.ECONNREFUSED):
		return driver.Unavailable(errors.New("connection refused; is redis-server running there? check host and port"))
	case errors.As(err, &dns):
		return driver.Unavailable(fmt.Errorf("host %q cannot be resolved; check its spelling", dns.Name))
	case errors.As(err, &authority):
		return errors.New("the server's certificate is signed by an unknown authority; name its CA with ca_file=")
	case errors.As(err, &hostname):
		return fmt.Errorf("the server's certificate is for another name (%v); give the right one with server_name=", hostname)
	case errors.As(err, &record):
		return errors.New("the server does not speak TLS on this port; write redis:// instead of rediss://, or the TLS port")
	case errors.As(err, new(*os.PathError)), strings.HasPrefix(err.Error(), "password_file"):
		return err
	}
	if strings.Contains(err.Error(), "remote error: tls:") {
		return fmt.Errorf("the server refuses the connection (%v); if it asks for a client certificate, add cert_file= and key_file=", err)
	}
	if _, ok := rueidis.IsRedisErr(err); !ok {
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || strings.Contains(err.Error(), "message type") {
			hint := "if it speaks TLS there, write rediss:// instead of redis://"
			if c.tls != nil {
				hint = "if it asks for a client certificate, add cert_file= and key_file="
			}
			return driver.Unavailable(errors.New("the server closes the connection or does not speak Redis' protocol; " + hint))
		}
		return driver.Unavailable(errors.New(plain(err.Error())))
	}
	message := plain(err.Error())
	switch word, _, _ := strings.Cut(message, " "); {
	case word == "WRONGPASS" && c.user == "":
		return errors.New("wrong password")
	case word == "WRONGPASS":
		return fmt.Errorf("wrong password for user %q, or no such user, or the user is off", c.user)
	case word == "NOAUTH":
		return errors.New("the server asks for a password; write redis://:password@host or redis://user:password@host, or add password_file=")
	case strings.Contains(message, "DB index"):
		return fmt.Errorf("the server has no database %d; use a lower number, or raise databases in redis.conf", c.db)
	case word == "NOPERM" && deniedCommand(err) != "":
		return permissionError(c, "run "+deniedCommand(err))
	case word == "NOPERM":
		return permissionError(c, "use keys "+c.prefix+"*")
	case word == "MOVED":
		return errors.New("the server is part of a Redis Cluster; want a single server")
	}
	return driver.Unavailable(errors.New(message))
}

// parseInfo reads the lines "name:value" of INFO.
func parseInfo(info string) map[string]string {
	facts := make(map[string]string)
	for line := range strings.Lines(info) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			facts[name] = value
		}
	}
	return facts
}

// describe says what the server is. One that does not tell (no right to INFO) may evict, for all we know.
func describe(facts map[string]string) driver.Description {
	d := driver.Description{Name: "redis", Shared: true}
	d.Durable = "the last snapshot, if Redis takes any (setting save)"
	if facts["aof_enabled"] == "1" {
		d.Durable = "all that Redis has written to its append-only file, all but the last second by default"
	}
	policy, known := facts["maxmemory_policy"]
	d.Evicts = !known || policy != "noeviction" && facts["maxmemory"] != "0"
	return d
}
