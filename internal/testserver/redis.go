package testserver

import (
	"bufio"
	"context"
	"fmt"
	"strings"
	"testing"
)

// RedisOptions say how [Redis] configures the server.
type RedisOptions struct {
	// Password is what the default user has to give (requirepass). "": none.
	Password string
	// Users are ACL users: "app on >secret ~holdfast:* +get".
	Users []string
	// TLS has the server speak TLS only, with certificates of its own, and ask clients for one.
	TLS bool
	// Config are further lines of redis.conf. Without any, nothing is written to disk.
	Config []string
}

// Redis starts redis-server.
func Redis(t testing.TB, o ...RedisOptions) *Server {
	t.Helper()
	opt := first(o)
	var certificates *Certificates
	if opt.TLS {
		certificates = NewCertificates(t)
	}
	return start(t, spec{
		program: "redis-server",
		debian:  "redis-server",
		args:    func(s *Server) []string { return []string{s.mustWrite("redis.conf", redisConfig(s, opt))} },
		ready:   redisReady,
	}, certificates)
}

func redisConfig(s *Server, o RedisOptions) string {
	conf := []string{"bind 127.0.0.1", "dir " + s.Dir, "daemonize no", `save ""`, "appendonly no"}
	if s.TLS == nil {
		conf = append(conf, "port "+s.Port())
	} else {
		conf = append(conf, s.TLS.redisConfig(s.Port())...)
	}
	if o.Password != "" {
		conf = append(conf, "requirepass "+o.Password)
	}
	for _, u := range o.Users {
		conf = append(conf, "user "+u)
	}
	return lines(append(conf, o.Config...)...)
}

// redisConfig are the lines that have a server speak TLS only.
func (c *Certificates) redisConfig(port string) []string {
	return []string{"port 0", "tls-port " + port, "tls-ca-cert-file " + c.CAFile, "tls-cert-file " + c.CertFile, "tls-key-file " + c.KeyFile}
}

// redisReady asks PING. A server that wants a password first is ready; one that still loads its data is not.
func redisReady(ctx context.Context, s *Server) error {
	conn, err := s.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline) // fails on a closed connection only, and then the read says so
	}
	if _, err := conn.Write([]byte("PING\r\n")); err != nil {
		return err
	}
	reply, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	for _, ok := range []string{"+PONG", "-NOAUTH", "-NOPERM"} {
		if strings.HasPrefix(reply, ok) {
			return nil
		}
	}
	return fmt.Errorf("PING is answered with %q", reply)
}
