package memcached

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/holdfast-sessions/holdfast/driver"
)

// Losses count what Load found in place of records, and what happened to servers, since Open and in this process.
// They cost no round trip. Only Vanished, Evictions and Restarts are losses for sure: memcached says of a key that it
// dropped the same as of one that never was.
type Losses struct {
	// Missing is how many loads found nothing: of an ID that was never issued, of a session that ended or expired longer
	// ago than the server remembers, or of one that memcached lost.
	Missing uint64
	// Ended and Expired are how many loads found that the session had been ended, or had expired: nothing was lost.
	Ended, Expired uint64
	// Vanished is how many records were gone when they were saved, that had been there when they were loaded.
	Vanished uint64
	// SecondCopy is how many loads were answered by the second copy (copies=2).
	SecondCopy uint64
	// Evictions is how many live keys the servers dropped for want of memory, as far as they have been asked: with each
	// new connection, and by Stat. They count those of other programs too.
	Evictions uint64
	// Restarts is how often a server was found restarted, and so empty.
	Restarts uint64
}

// Losses returns the sum over all servers.
func (s *Store) Losses() Losses {
	var sum Losses
	for _, srv := range s.servers {
		l := srv.losses()
		sum.Missing += l.Missing
		sum.Ended += l.Ended
		sum.Expired += l.Expired
		sum.Vanished += l.Vanished
		sum.SecondCopy += l.SecondCopy
		sum.Evictions += l.Evictions
		sum.Restarts += l.Restarts
	}
	return sum
}

func (s *server) losses() Losses {
	c := &s.seen
	return Losses{
		Missing: c.missing.Load(), Ended: c.ended.Load(), Expired: c.expired.Load(), Vanished: c.vanished.Load(),
		SecondCopy: c.second.Load(), Evictions: c.evictions.Load(), Restarts: c.restarts.Load(),
	}
}

// Stat asks every server for its statistics. A server that does not answer is a fact too; it is an error only if none
// answers. memcached cannot tell records from what else it keeps.
func (s *Store) Stat(ctx context.Context) (driver.Stat, error) {
	st := driver.Stat{Records: -1, Expired: -1}
	var failed []error
	for _, srv := range s.servers {
		info, err := ask(ctx, srv, func(l *lane) (map[string]string, error) { return l.stats("") })
		if err != nil {
			failed = append(failed, err)
			st.Facts = append(st.Facts, driver.Fact{Name: srv.addr, Value: err.Error()})
			continue
		}
		srv.mu.Lock()
		srv.note(info)
		srv.mu.Unlock()
		st.Bytes += int64(number(info, "bytes"))
		st.Facts = append(st.Facts, driver.Fact{Name: srv.addr, Value: fmt.Sprintf(
			"memcached %s, up %s s, %s keys (also ended and expired sessions, and other programs'), %s of %s bytes, %s evictions",
			info["version"], info["uptime"], info["curr_items"], info["bytes"], info["limit_maxbytes"], info["evictions"])})
	}
	if len(failed) == len(s.servers) {
		return driver.Stat{}, errors.Join(failed...)
	}
	if len(failed) > 0 {
		st.Bytes = -1
	}
	l := s.Losses()
	for _, f := range []struct {
		name string
		n    uint64
	}{
		{"loads that found nothing, in this process", l.Missing},
		{"loads of ended sessions, in this process", l.Ended},
		{"loads of expired sessions, in this process", l.Expired},
		{"records gone between load and save, in this process", l.Vanished},
		{"evictions, since this process started", l.Evictions},
		{"restarts, since this process started", l.Restarts},
	} {
		st.Facts = append(st.Facts, driver.Fact{Name: f.name, Value: strconv.FormatUint(f.n, 10)})
	}
	return st, nil
}

// stats asks for one kind of statistics, "" for the general ones.
func (l *lane) stats(kind string) (map[string]string, error) {
	r, err := l.send(strings.TrimSpace("stats " + kind))
	if err != nil {
		return nil, err
	}
	return parseStats(r)
}

// maxStats is how many lines of statistics are read. memcached 1.6 sends about a hundred.
const maxStats = 1000

// parseStats reads "STAT name value" lines up to END. A server that refuses the command has no statistics.
func parseStats(r *bufio.Reader) (map[string]string, error) {
	info := make(map[string]string)
	for range maxStats {
		line, err := readLine(r)
		if err != nil {
			return nil, err
		}
		switch name, value, _ := strings.Cut(strings.TrimPrefix(line, "STAT "), " "); {
		case line == "END", line == "RESET":
			return info, nil
		case strings.HasPrefix(line, "STAT "):
			info[name] = value
		case len(info) == 0 && line == "ERROR": // a proxy
			return info, nil
		default:
			return nil, fmt.Errorf("memcache: unexpected line in answer to stats: %q", line)
		}
	}
	return nil, errors.New("the answer to stats does not end")
}

// readLine returns the next line without its end. A line that does not fit r's buffer is an error.
func readLine(r *bufio.Reader) (string, error) {
	b, err := r.ReadSlice('\n')
	if err != nil {
		return "", err
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

// number returns a statistic, or 0 if the server does not tell.
func number(info map[string]string, name string) uint64 {
	n, _ := strconv.ParseUint(info[name], 10, 64)
	return n
}

// parseLife returns what tells one life of a server from the next: a hash of its process ID and of the second in which
// it started, or 0 if it does not tell. memcached computes time and uptime from one clock, so that their difference is
// the same each time. A container's process ID is 1 in every life: one that lived for less than a second is
// taken for its successor.
func parseLife(info map[string]string) uint64 {
	pid, at, up := number(info, "pid"), number(info, "time"), number(info, "uptime")
	if pid == 0 || at == 0 {
		return 0
	}
	return max(mix(pid, at-up), 1)
}
