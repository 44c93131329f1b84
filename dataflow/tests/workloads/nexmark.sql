-- Nexmark's questions over tables of persons, auctions and bids. Event time is the column date_time.
-- `reference:` begins the same question in words that DataFusion has; `refused:` what a refusal must name.

-- q0 passthrough
SELECT auction, bidder, price, date_time, extra FROM bid

-- q1 currency
SELECT auction, bidder, 0.908 * price AS price, date_time, extra FROM bid

-- q2 selection
SELECT auction, price FROM bid WHERE auction % 3 = 0

-- q3 local items
SELECT p.name, p.city, p.state, a.id FROM auction AS a JOIN person AS p ON a.seller = p.id
WHERE a.category = 10 AND p.state IN ('OR', 'ID', 'CA')

-- q4 average closing price by category
SELECT category, avg(final) AS average FROM (
  SELECT a.category, a.id, max(b.price) AS final FROM auction AS a JOIN bid AS b ON a.id = b.auction
  WHERE b.date_time BETWEEN a.date_time AND a.expires GROUP BY a.id, a.category) AS q
GROUP BY category

-- q5 hot items
SELECT counted.auction, counted.num, counted.window_start FROM (
  SELECT auction, count(*) AS num, window_start, window_end
  FROM HOP(bid, date_time, INTERVAL '2 seconds', INTERVAL '10 seconds') GROUP BY auction, window_start, window_end) AS counted
JOIN (
  SELECT max(num) AS maxn, window_start FROM (
    SELECT auction, count(*) AS num, window_start
    FROM HOP(bid, date_time, INTERVAL '2 seconds', INTERVAL '10 seconds') GROUP BY auction, window_start) AS c
  GROUP BY window_start) AS most
ON counted.window_start = most.window_start AND counted.num >= most.maxn
reference:
WITH hops AS (
  SELECT b.auction, date_bin(interval '2 seconds', b.date_time) - h.n AS window_start
  FROM bid AS b CROSS JOIN (
    VALUES (interval '0 seconds'), (interval '2 seconds'), (interval '4 seconds'), (interval '6 seconds'), (interval '8 seconds')) AS h(n) WHERE b.date_time IS NOT NULL),
counted AS (SELECT auction, count(*) AS num, window_start FROM hops GROUP BY auction, window_start)
SELECT auction, num, window_start FROM (
  SELECT auction, num, window_start, max(num) OVER (PARTITION BY window_start) AS maxn FROM counted) AS q WHERE num >= maxn

-- q6 average price of a seller's last ten
SELECT seller, date_time, avg(final) OVER (
    PARTITION BY seller ORDER BY date_time, id ROWS BETWEEN 10 PRECEDING AND CURRENT ROW) AS average
FROM (
  SELECT a.id, a.seller, a.date_time, max(b.price) AS final FROM auction AS a JOIN bid AS b ON a.id = b.auction
  WHERE b.date_time BETWEEN a.date_time AND a.expires GROUP BY a.id, a.date_time, a.seller) AS q

-- q7 highest bid
SELECT b.auction, b.price, b.bidder, b.date_time, b.extra FROM bid AS b JOIN (
  SELECT max(price) AS maxprice, window_start, window_end
  FROM TUMBLE(bid, date_time, INTERVAL '10 seconds') GROUP BY window_start, window_end) AS w
ON b.price = w.maxprice WHERE b.date_time >= w.window_start AND b.date_time < w.window_end
reference:
SELECT b.auction, b.price, b.bidder, b.date_time, b.extra FROM bid AS b JOIN (
  SELECT max(price) AS maxprice, date_bin(interval '10 seconds', date_time) AS window_start
  FROM bid WHERE date_time IS NOT NULL GROUP BY 2) AS w
ON b.price = w.maxprice WHERE b.date_time >= w.window_start AND b.date_time < w.window_start + interval '10 seconds'

-- q8 new users who sell
SELECT p.id, p.name, p.window_start FROM (
  SELECT id, name, window_start FROM TUMBLE(person, date_time, INTERVAL '10 seconds') GROUP BY id, name, window_start) AS p
JOIN (SELECT seller, window_start FROM TUMBLE(auction, date_time, INTERVAL '10 seconds') GROUP BY seller, window_start) AS a
ON p.id = a.seller AND p.window_start = a.window_start
reference:
SELECT p.id, p.name, p.window_start FROM (
  SELECT DISTINCT id, name, date_bin(interval '10 seconds', date_time) AS window_start FROM person) AS p
JOIN (SELECT DISTINCT seller, date_bin(interval '10 seconds', date_time) AS window_start FROM auction) AS a
ON p.id = a.seller AND p.window_start = a.window_start

-- q9 winning bids
SELECT id, item_name, seller, category, auction, bidder, price, bid_time FROM (
  SELECT a.id, a.item_name, a.seller, a.category, b.auction, b.bidder, b.price, b.date_time AS bid_time,
    row_number() OVER (PARTITION BY a.id ORDER BY b.price DESC, b.date_time, b.bidder, a.item_name, a.seller, a.category) AS place
  FROM auction AS a JOIN bid AS b ON a.id = b.auction WHERE b.date_time BETWEEN a.date_time AND a.expires) AS q
WHERE place <= 1

-- q10 partitions of a log
SELECT auction, bidder, price, date_time, extra, to_char(date_time, '%Y-%m-%d') AS day, to_char(date_time, '%H:%M') AS minute FROM bid

-- q11 bids of a user in a session
SELECT bidder, count(*) AS n, window_start FROM SESSION(bid, date_time, INTERVAL '10 seconds') GROUP BY bidder, window_start
refused: session

-- q12 bids of a user in processing time
SELECT bidder, count(*) AS n, window_start FROM TUMBLE(bid, proctime(), INTERVAL '10 seconds') GROUP BY bidder, window_start
refused: proctime

-- q13 a side input
SELECT b.auction, b.bidder, b.price, b.date_time, s.name FROM bid AS b JOIN person AS s ON b.auction % 10 = s.id

-- q14 calculation
SELECT auction, bidder, 0.908 * price AS price,
  CASE WHEN extract(hour FROM date_time) BETWEEN 8 AND 18 THEN 'dayTime'
    WHEN extract(hour FROM date_time) <= 6 OR extract(hour FROM date_time) >= 20 THEN 'nightTime' ELSE 'otherTime' END AS bid_time_type,
  date_time, extra, length(extra) - length(replace(extra, 'c', '')) AS c_counts
FROM bid WHERE 0.908 * price > 100 AND 0.908 * price < 50000

-- q15 bidding by day
SELECT to_char(date_time, '%Y-%m-%d') AS day, count(*) AS total_bids,
  count(*) FILTER (WHERE price < 10000) AS rank1_bids, count(*) FILTER (WHERE price >= 10000 AND price < 1000000) AS rank2_bids,
  count(DISTINCT bidder) AS total_bidders, count(DISTINCT bidder) FILTER (WHERE price < 10000) AS rank1_bidders,
  count(DISTINCT auction) AS total_auctions, count(DISTINCT auction) FILTER (WHERE price >= 10000) AS rank2_auctions
FROM bid GROUP BY to_char(date_time, '%Y-%m-%d')

-- q16 channels by day
SELECT channel, to_char(date_time, '%Y-%m-%d') AS day, max(to_char(date_time, '%H:%M')) AS minute, count(*) AS total_bids,
  count(*) FILTER (WHERE price < 10000) AS rank1_bids, count(DISTINCT bidder) AS total_bidders,
  count(DISTINCT auction) FILTER (WHERE price < 10000) AS rank1_auctions
FROM bid GROUP BY channel, to_char(date_time, '%Y-%m-%d')

-- q17 auctions by day
SELECT auction, to_char(date_time, '%Y-%m-%d') AS day, count(*) AS total_bids,
  count(*) FILTER (WHERE price < 10000) AS rank1_bids, min(price) AS min_price, max(price) AS max_price,
  avg(price) AS avg_price, sum(price) AS sum_price
FROM bid GROUP BY auction, to_char(date_time, '%Y-%m-%d')

-- q18 last bid
SELECT auction, bidder, price, channel, date_time FROM (
  SELECT *, row_number() OVER (PARTITION BY bidder, auction ORDER BY date_time DESC, price, channel) AS place FROM bid) AS q WHERE place <= 1

-- q19 ten best bids of an auction
SELECT auction, bidder, price, channel, date_time, place FROM (
  SELECT *, row_number() OVER (PARTITION BY auction ORDER BY price DESC, bidder, date_time, channel) AS place FROM bid) AS q WHERE place <= 10

-- q20 bids with their auctions
SELECT b.auction, b.bidder, b.price, b.channel, b.url, b.date_time, a.item_name, a.initial_bid, a.reserve, a.seller, a.category
FROM bid AS b JOIN auction AS a ON b.auction = a.id WHERE a.category = 10

-- q21 channel ids
SELECT auction, bidder, price, channel,
  CASE WHEN lower(channel) = 'apple' THEN '0' WHEN lower(channel) = 'google' THEN '1' WHEN lower(channel) = 'facebook' THEN '2'
    ELSE regexp_replace(url, '.*channel_id=([^&]*).*', '\1') END AS channel_id
FROM bid WHERE regexp_like(url, 'channel_id=') OR lower(channel) IN ('apple', 'google', 'facebook')

-- q22 directories of a URL
SELECT auction, bidder, price, channel, split_part(url, '/', 4) AS dir1, split_part(url, '/', 5) AS dir2, split_part(url, '/', 6) AS dir3
FROM bid
