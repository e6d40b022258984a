package filestore

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/holdfast-sessions/holdfast/internal/storeurl"
)

// options are what the query of a URL may set.
func (c *Config) options() map[string]func(value string) error {
	return map[string]func(value string) error{
		"layout": func(value string) error {
			switch l := Layout(value); l {
			case Flat, Hashed:
				c.Layout = l
				return nil
			}
			return fmt.Errorf("%q is neither flat nor hashed", value)
		},
		"network": func(value string) error {
			switch value {
			case "refuse":
				c.Network = Refuse
			case "nfs", "unsafe":
				c.Network = Network(value)
			default:
				return fmt.Errorf("%q is none of refuse, nfs and unsafe", value)
			}
			return nil
		},
		"sync": func(value string) error {
			switch value {
			case "none", "data":
				c.SyncData = value == "data"
				return nil
			}
			return fmt.Errorf("%q is neither none nor data", value)
		},
		"sweep": func(value string) error {
			if value == "never" {
				c.SweepEvery = -1
				return nil
			}
			d, err := time.ParseDuration(value)
			if err != nil || d <= 0 {
				return fmt.Errorf("%q is neither a time such as 1m or 30s nor never", value)
			}
			c.SweepEvery = d
			return nil
		},
	}
}

// OpenURL opens the store that a URL names: file:///absolute/path or file:relative/path, with the options layout
// (flat or hashed), sync (none or data), sweep (a time such as 30s, or never) and network (refuse, nfs or
// unsafe).
func OpenURL(ctx context.Context, rawURL string) (*Store, error) {
	path, c, err := ParseURL(rawURL)
	if err != nil {
		return nil, err
	}
	return Open(ctx, path, c)
}

// ParseURL returns the directory and the settings that a URL names. Its error names everything that is wrong.
func ParseURL(rawURL string) (path string, c Config, err error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return "", Config{}, fmt.Errorf("store URL: %w", err)
	}
	path = u.Path
	if u.Opaque != "" {
		if path, err = url.PathUnescape(u.Opaque); err != nil {
			return "", Config{}, fmt.Errorf("store URL: %w", err)
		}
	}
	var wrong []error
	add := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf("store URL: "+format, args...)) }
	if u.Scheme != "file" {
		add("scheme %q, want file", u.Scheme)
	}
	if u.Host != "" || u.User != nil {
		add("file://%s%s names the host %s; write file:///%s%s for an absolute path or file:%s%s for a relative one",
			u.Host, u.Path, u.Host, u.Host, u.Path, u.Host, u.Path)
	}
	if path == "" || strings.ContainsRune(path, 0) {
		add("no directory in it; write file:///absolute/path or file:relative/path")
	}
	if u.Fragment != "" {
		add("%q after # is not part of the path; write # as %%23", u.Fragment)
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		add("%w", err)
	}
	if err := storeurl.Options(query, c.options()); err != nil {
		add("%w", err)
	}
	return path, c, errors.Join(wrong...)
}
