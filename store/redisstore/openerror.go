package redisstore

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"syscall"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/redis/rueidis"
)

// rights are what the store uses. It does without the second line: scan and mget are for List, info and config|get
// for Describe and the size limit, ping is to notice a dead connection.
const rights = "+evalsha +eval +get +set +del +getrange +setrange +pexpire " +
	"+scan +mget +info +config|get +ping"

// sentinelRights are what a user of the Sentinels needs. Without the last two, and the channel, a failover is noticed up
// to a second later, and a Sentinel that hangs too.
const sentinelRights = "&+switch-master +sentinel|master +sentinel|get-master-addr-by-name +ping +subscribe"

// moreRights returns what the URL's options and a cluster take beside rights.
func moreRights(c config) string {
	more := ""
	if c.kind == clustered {
		more += " +cluster|slots +cluster|shards +cluster|nodes"
	}
	if c.wait > 0 {
		more += " +wait"
	}
	if c.cacheBytes > 0 {
		more += " +client|tracking"
	}
	return more
}

func permissionError(c config, what string) error {
	user := c.login.user
	if user == "" {
		user = "default"
	}
	return fmt.Errorf("user %q may not %s; grant it with ACL SETUSER %s ~%s* %s%s", user, what, user, c.prefix, rights, moreRights(c))
}

var quotedCommand = regexp.MustCompile(`'([A-Za-z|]+)' command`)

// deniedCommand returns the command that err says the user may not run, or "".
func deniedCommand(err error) string {
	if e := (*rueidis.RedisError)(nil); errors.As(err, &e) && strings.HasPrefix(e.Error(), "NOPERM") {
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
		sentinel  *sentinelError
	)
	if errors.As(err, &sentinel) {
		return sentinelOpenError(sentinel)
	}
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, driver.ErrClosed), errors.Is(err, errNoCluster):
		return err
	case deniedCommand(err) != "":
		return permissionError(c, "run "+deniedCommand(err))
	case errors.Is(err, rueidis.ErrNoCache) && strings.Contains(err.Error(), "NOPERM"):
		return permissionError(c, "run CLIENT TRACKING")
	case errors.Is(err, rueidis.ErrNoCache):
		return errors.New("the server does not tell what changes (CLIENT TRACKING), as cache= needs it to; leave cache= out")
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
	case word == "WRONGPASS" && c.login.user == "":
		return errors.New("wrong password")
	case word == "WRONGPASS":
		return fmt.Errorf("wrong password for user %q, or no such user, or the user is off", c.login.user)
	case word == "NOAUTH":
		return errors.New("the server asks for a password; write redis://:password@host or redis://user:password@host, or add password_file=")
	case strings.Contains(message, "DB index"):
		return fmt.Errorf("the server has no database %d; use a lower number, or raise databases in redis.conf", c.db)
	case word == "NOPERM":
		return permissionError(c, "use keys "+c.prefix+"*")
	case word == "MOVED":
		return errors.New("the server is part of a Redis Cluster; write redis-cluster://")
	case strings.Contains(message, "cluster support disabled"):
		return errNoCluster
	}
	return driver.Unavailable(errors.New(message))
}

// sentinelOpenError explains why no Sentinel names the primary.
func sentinelOpenError(err *sentinelError) error {
	message := err.Error()
	switch {
	case errors.Is(err, errNoSuchMaster):
		return err
	case strings.Contains(message, "NOAUTH"), strings.Contains(message, "WRONGPASS"):
		return errors.New("the Sentinels ask for a password, or for another one; add sentinel_password_file=, and sentinel_user= if they know users")
	case strings.Contains(message, "NOPERM"):
		return errors.New("the user of the Sentinels may not ask them; grant it with ACL SETUSER NAME " + sentinelRights)
	case strings.Contains(message, "unknown command"):
		return errors.New("what answers there is no Sentinel; want the addresses of Sentinels, port 26379 if you did not choose another")
	}
	return driver.Unavailable(err)
}
