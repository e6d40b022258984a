package sqlite

import (
	"context"
	"database/sql/driver"

	"modernc.org/sqlite"

	"github.com/holdfast-sessions/holdfast/store/sqlstore"
)

// OpenWith is Open, with something between the store and the client library.
func OpenWith(ctx context.Context, url string, wrap func(driver.Connector) driver.Connector) (*sqlstore.Store, error) {
	c, err := parse(url)
	if err != nil {
		return nil, err
	}
	if err := c.file(); err != nil {
		return nil, err
	}
	connector, err := sqlite.NewConnector(c.dsn())
	if err != nil {
		return nil, err
	}
	return sqlstore.Open(ctx, c.dialect(), wrap(connector), c.settings(nil))
}

// Parse returns the file and the table that a URL names, and what the client library is given.
func Parse(url string) (path, table, dsn string, err error) {
	c, err := parse(url)
	if err != nil {
		return "", "", "", err
	}
	return c.path, c.Name, c.dsn(), nil
}
